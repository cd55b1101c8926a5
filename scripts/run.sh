#!/bin/sh
# Runs one named command with the clone's Python: the active virtual environment, else .venv, else python3.
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
. "$root/scripts/python.sh"
exec "$python" "$root/scripts/run.py" "$@"
