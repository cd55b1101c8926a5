#!/usr/bin/env bash
# Before a release: does the engine install, and run, under every supported Python?
#
#   bash scripts/release_check.sh                     python3.10 to python3.13: 4 minutes and 6 GB each, given back
#   bash scripts/release_check.sh 3.12 --no-project   one of them, the engine alone
#
# Expected: "ok" in every cell, exit status 0. Needs each python3.X on the path or in pyenv, and a package index.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd -P)
exec "${PYTHON:-python3}" "$root/scripts/release_check.py" "$@"
