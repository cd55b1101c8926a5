#!/bin/sh
# Zero-shot CLIP on the new classes.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/base2new_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" zsclip/base2new_test "$@"
