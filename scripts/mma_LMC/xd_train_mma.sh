#!/bin/sh
# Stage 2: MERGETUNE from an MMA run, all classes of the source, for the cross-data-set and domain tests.
# Arguments: DATASET W_LMC CFG SEED
# bash scripts/mma_LMC/xd_train_mma.sh imagenet 10.0 vit_b16_ep5 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma_LMC/xd_train_mma "$@"
