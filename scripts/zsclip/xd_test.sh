#!/bin/sh
# Cross-data-set: Zero-shot CLIP on DATASET.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/xd_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" zsclip/xd_test "$@"
