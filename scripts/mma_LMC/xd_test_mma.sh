#!/bin/sh
# Cross-data-set: MERGETUNE on MMA on DATASET, trained on the source.
# Arguments: DATASET W_LMC CFG SEED, or DATASET W_LMC CFG SEED SOURCE
# bash scripts/mma_LMC/xd_test_mma.sh caltech101 10.0 vit_b16_ep5 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma_LMC/xd_test_mma "$@"
