#!/bin/sh
# End-to-end fine-tuning: its test on DATASET, the source or a shifted set.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/robust/finetune_test.sh imagenet_a 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/finetune_test "$@"
