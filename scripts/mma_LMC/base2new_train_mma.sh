#!/bin/sh
# Stage 2: MERGETUNE from an MMA run.
# Arguments: DATASET W_LMC CFG SEED
# bash scripts/mma_LMC/base2new_train_mma.sh caltech101 10.0 vit_b16_ep5 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma_LMC/base2new_train_mma "$@"
