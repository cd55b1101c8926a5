#!/bin/sh
# MERGETUNE from end-to-end fine-tuning, all images of the source.
# Arguments: DATASET CFG SEED
# bash scripts/robust/finetune_LMC_train.sh imagenet paper 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/finetune_LMC_train "$@"
