#!/bin/sh
# Stage 2: MERGETUNE from a KgCoOp run, SHOTS images of every class.
# Arguments: DATASET SHOTS CLIP_WEIGHT LOSS_TYPE COOP_LMC W_LMC SEED CFG, or DATASET SHOTS CLIP_WEIGHT W_LMC SEED CFG
# bash scripts/kgcoop_LMC/fewshot_train_kgcoop.sh caltech101 4 10.0 1.0 1 vit_b16_ep100_ctxv1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop_LMC/fewshot_train_kgcoop "$@"
