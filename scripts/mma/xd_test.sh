#!/bin/sh
# Cross-data-set: MMA on DATASET, trained on the source.
# Arguments: DATASET SEED CFG, or DATASET SEED, or DATASET SEED CFG SOURCE
# bash scripts/mma/xd_test.sh caltech101 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/xd_test "$@"
