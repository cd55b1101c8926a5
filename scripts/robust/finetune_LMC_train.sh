#!/bin/sh
# MERGETUNE from end-to-end fine-tuning, all pictures of the source.
# Arguments: DATASET CFG SEED
# bash scripts/robust/finetune_LMC_train.sh imagenet paper 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" robust/finetune_LMC_train "$@"
