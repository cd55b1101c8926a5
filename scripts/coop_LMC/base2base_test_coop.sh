#!/bin/sh
# MERGETUNE on CoOp: its accuracy on the base classes.
# Arguments: DATASET CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG
# bash scripts/coop_LMC/base2base_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_LMC/base2base_test_coop "$@"
