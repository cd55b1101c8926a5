#!/bin/sh
# MERGETUNE from end-to-end fine-tuning: its test on DATASET, the source or a shifted set.
# Arguments: DATASET CFG SEED, or DATASET CFG SEED SOURCE
# bash scripts/robust/finetune_LMC_test.sh imagenet_a paper 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/finetune_LMC_test "$@"
