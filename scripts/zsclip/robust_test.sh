#!/bin/sh
# Robust fine-tuning: Zero-shot CLIP on DATASET, all classes.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/robust_test.sh imagenet_a 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" zsclip/robust_test "$@"
