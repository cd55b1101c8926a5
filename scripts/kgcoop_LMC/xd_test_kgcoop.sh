#!/bin/sh
# Cross-data-set: MERGETUNE on KgCoOp on DATASET, trained on the source.
# Arguments: DATASET CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG, or DATASET CLIP_WEIGHT W_LMC SEED CFG, or DATASET CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG SOURCE, or DATASET CLIP_WEIGHT W_LMC SEED CFG SOURCE
# bash scripts/kgcoop_LMC/xd_test_kgcoop.sh caltech101 10.0 1.0 1 vit_b16_ep100_ctxv1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop_LMC/xd_test_kgcoop "$@"
