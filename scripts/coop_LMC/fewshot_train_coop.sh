#!/bin/sh
# Stage 2: MERGETUNE from a CoOp run, SHOTS images of every class.
# Arguments: DATASET SHOTS CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG
# bash scripts/coop_LMC/fewshot_train_coop.sh caltech101 4 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_LMC/fewshot_train_coop "$@"
