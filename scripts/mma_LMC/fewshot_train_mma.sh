#!/bin/sh
# Stage 2: MERGETUNE from an MMA run, SHOTS images of every class.
# Arguments: DATASET SHOTS W_LMC CFG SEED
# bash scripts/mma_LMC/fewshot_train_mma.sh caltech101 4 10.0 vit_b16_ep5 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma_LMC/fewshot_train_mma "$@"
