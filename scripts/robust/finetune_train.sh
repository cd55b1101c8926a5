#!/bin/sh
# End-to-end fine-tuning, all images of the source.
# Arguments: DATASET SEED, or SEED
# bash scripts/robust/finetune_train.sh imagenet 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/finetune_train "$@"
