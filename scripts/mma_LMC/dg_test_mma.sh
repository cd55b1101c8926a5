#!/bin/sh
# Domain generalisation: MERGETUNE on MMA on DATASET, trained on the source.
# Arguments: DATASET W_LMC CFG SEED, or DATASET W_LMC CFG SEED SOURCE
# bash scripts/mma_LMC/dg_test_mma.sh imagenet_a 10.0 vit_b16_ep5 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma_LMC/dg_test_mma "$@"
