# Sourced: sets $python to the clone's Python: the active virtual environment, else .venv, else python3.
# Expects $root, the clone.
if [ -n "${VIRTUAL_ENV:-}" ]; then
    python=$VIRTUAL_ENV/bin/python
    if [ ! -x "$python" ]; then
        echo "error: VIRTUAL_ENV is $VIRTUAL_ENV, which has no bin/python: deactivate it, or unset VIRTUAL_ENV" >&2
        exit 1
    fi
elif [ -x "$root/.venv/bin/python" ]; then python=$root/.venv/bin/python
else python=python3; fi
