#!/bin/sh
# Stage 1: MMA, SHOTS images of every class.
# Arguments: DATASET SHOTS SEED CFG, or DATASET SHOTS SEED
# bash scripts/mma/fewshot_train.sh caltech101 4 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/fewshot_train "$@"
