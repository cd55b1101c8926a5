#!/bin/sh
# Cross-data-set: mean of CLIP's class vectors and those of CoOp trained on the source, on DATASET.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/coop_average/xd_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_average/xd_test "$@"
