#!/bin/sh
# Few-shot curve: MMA on all classes.
# Arguments: DATASET SHOTS SEED CFG, or DATASET SHOTS SEED
# bash scripts/mma/fewshot_test.sh caltech101 4 1 vit_b16_ep5
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" mma/fewshot_test "$@"
