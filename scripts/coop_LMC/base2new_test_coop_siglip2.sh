#!/bin/sh
# MERGETUNE on CoOp: its accuracy on the new classes. On SigLIP 2, seeds 1 to 3.
# Arguments: DATASET CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC CFG
# bash scripts/coop_LMC/base2new_test_coop_siglip2.sh caltech101 10.0 cosine True 1.0 siglip2_b16_ep100_ctxv1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_LMC/base2new_test_coop_siglip2 "$@"
