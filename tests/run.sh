#!/usr/bin/env bash
# All tests, with their own set-up: bash tests/run.sh [pytest arguments]
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
. "$root/scripts/setup.sh"
setup requirements.txt tests/requirements.txt
cd "$root"
"$python" -m ruff check .
# one thread a process: two test processes share the cores
OMP_NUM_THREADS=1 exec "$python" -m pytest -q -n "${WORKERS:-2}" "$@"
