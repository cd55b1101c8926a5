#!/bin/sh
# Runs one named command with the clone's Python: the active virtual environment, else .venv, else python3.
root=$(cd "$(dirname "$0")/.." && pwd -P)
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python
elif [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python
else python=python3; fi
exec "$python" "$root/scripts/run.py" "$@"
