# Sourced: sets $python to the clone's Python: the active virtual environment, else .venv, else python3.
# Expects $root, the clone.
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python
elif [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python
else python=python3; fi
