#!/bin/sh
# Data sets, from any folder (python -m datasets --help):
#   bash scripts/data.sh check [NAME...] [--root DIR] [--protocol coop|mtil|all] [--decode none|sample|all] [--json FILE]
#   bash scripts/data.sh links [NAME...]
#   bash scripts/data.sh make-split NAME [--root DIR]
#   bash scripts/data.sh import-subset FILE.pkl NAME [--root DIR] [--out FILE]
# check ends with 0 (all well), 1 (problems) or 2 (nothing found). Default root: $DATA, else data/ in the clone.
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
. "$root/scripts/python.sh"
[ "${DRY_RUN:-}" = 1 ] && { echo python -m datasets "$@"; exit; }
# by path, for the caller's folder may have a package of this name
PYTHONPATH="$root:$root/Dassl.ProGrad.pytorch${PYTHONPATH:+:$PYTHONPATH}" exec "$python" "$root/datasets/__main__.py" "$@"
