#!/usr/bin/env bash
# All tests, with their own set-up: bash tests/run.sh [pytest arguments]
# The tests that finish a change, without those that start processes: bash tests/run.sh --quick
# Every command of README and docs, typed from a fresh checkout: bash tests/run.sh --docs [pytest arguments]
# Where no Chromium or Chrome is found the tests of the HTML page are left out, and counted; --browser: they fail
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
. "$root/scripts/setup.sh"
if [ "${1:-}" = --docs ]; then
    shift
    set -- tests/docs/pages.py "$@"
fi
setup requirements.txt tests/requirements.txt
cd "$root"
"$python" -m ruff check .
# one thread a process: two test processes share the cores
OMP_NUM_THREADS=1 exec "$python" -m pytest -q -n "${WORKERS:-2}" --dist worksteal "$@"
