#!/bin/sh
# Stage 1: MMA, 16 shots of the base classes.
# Arguments: DATASET SEED CFG, or DATASET SEED
# bash scripts/mma/base2new_train.sh caltech101 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/base2new_train "$@"
