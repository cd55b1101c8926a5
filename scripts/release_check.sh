#!/usr/bin/env bash
# Before a release: does the engine install, and run, under every supported Python? (pip install nox)
#
#   bash scripts/release_check.sh                     python3.10 to python3.13: 4 minutes and 6 GB each, given back
#   bash scripts/release_check.sh 3.12 --no-project   one of them, the engine alone
#
# Expected: "success" in every line of the end, exit status 0. Needs each python3.X on the path or in pyenv, and a
# package index.
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
case " $* " in *" -h "* | *" --help "*) sed -n '2,/^set/s/^# \{0,1\}//p' "$0"; exit ;; esac
[ "${DRY_RUN:-}" = 1 ] && { echo python -m nox -f scripts/noxfile.py "$@"; exit; }
. "$root/scripts/python.sh"
"$python" -c 'import nox' 2> /dev/null || { echo "error: nox is not installed: $python -m pip install nox" >&2; exit 1; }
if command -v pyenv > /dev/null; then
    for folder in "$(pyenv root)"/versions/*/bin; do PATH=$PATH:$folder; done
fi
versions=() more=()
for word in "$@"; do
    case $word in 3.*) versions+=("$word") ;; *) more+=("$word") ;; esac
done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m nox -f "$root/scripts/noxfile.py" --envdir "$folder" ${versions[@]+-p "${versions[@]}"} -- ${more[@]+"${more[@]}"}
