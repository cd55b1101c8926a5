#!/usr/bin/env bash
# What only a GPU can show, as one Markdown table in $OUTPUT/gpu.md: bash tests/gpu.sh [--only NAME ...]
# Under 10 minutes on one CUDA card; without one it is refused before anything is installed (--device cpu: a rehearsal)
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd -P)
case " $* " in
*" --device cpu "* | *" --device=cpu "* | *" --help "* | *" -h "*) ;;
*)
    if ! ls /dev/nvidia[0-9]* /dev/dxg /dev/kfd > /dev/null 2>&1; then
        echo "error: no CUDA device: this machine has none of /dev/nvidia*, /dev/dxg and /dev/kfd" >&2
        exit 1
    fi
    ;;
esac
. "$root/scripts/setup.sh"
asks_help "$@" || setup requirements.txt tests/requirements.txt
cd "$root"
PYTHONPATH="$root:$root/Dassl.ProGrad.pytorch" exec "$python" -m tests.gpu "$@"
