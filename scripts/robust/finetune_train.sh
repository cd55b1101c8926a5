#!/bin/sh
# End-to-end fine-tuning, all pictures of the source.
# Arguments: DATASET SEED, or SEED
# bash scripts/robust/finetune_train.sh imagenet 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" robust/finetune_train "$@"
