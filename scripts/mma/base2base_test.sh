#!/bin/sh
# MMA: its accuracy on the base classes.
# Arguments: DATASET SEED CFG, or DATASET SEED, or DATASET SEED CFG LOADEP
# bash scripts/mma/base2base_test.sh caltech101 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/base2base_test "$@"
