#!/bin/sh
# Domain generalisation: MMA on DATASET, trained on the source.
# Arguments: DATASET SEED CFG, or DATASET SEED, or DATASET SEED CFG SOURCE
# bash scripts/mma/dg_test.sh imagenet_a 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/dg_test "$@"
