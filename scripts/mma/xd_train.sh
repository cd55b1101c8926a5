#!/bin/sh
# Stage 1: MMA, all classes of the source, for the cross-data-set and domain tests.
# Arguments: DATASET SEED CFG, or DATASET SEED, or SEED
# bash scripts/mma/xd_train.sh imagenet 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/xd_train "$@"
