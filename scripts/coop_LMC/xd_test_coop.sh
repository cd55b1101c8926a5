#!/bin/sh
# Cross-data-set: MERGETUNE on CoOp on DATASET, trained on the source.
# Arguments: DATASET CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG, or DATASET CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG SOURCE
# bash scripts/coop_LMC/xd_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_LMC/xd_test_coop "$@"
