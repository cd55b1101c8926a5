#!/usr/bin/env bash
# All tests, with their own set-up: bash tests/run.sh [pytest arguments]
# Every command of README and docs, typed from a fresh checkout: bash tests/run.sh --docs [pytest arguments]
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
. "$root/scripts/setup.sh"
if [ "${1:-}" = --docs ]; then
    shift
    set -- tests/docs/pages.py "$@"
fi
setup requirements.txt tests/requirements.txt
cd "$root"
# the HTML report is opened in a browser: any Chromium or Chrome on the path, else Debian's package
if ! command -v chromium chromium-browser google-chrome google-chrome-stable chrome > /dev/null &&
    command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    echo "Installing Debian's chromium"
    { apt-get update -qq && apt-get install -y -qq chromium; } > /dev/null || echo "apt-get could not install chromium"
fi
"$python" -m ruff check .
# one thread a process: two test processes share the cores
OMP_NUM_THREADS=1 exec "$python" -m pytest -q -n "${WORKERS:-2}" --dist worksteal "$@"
