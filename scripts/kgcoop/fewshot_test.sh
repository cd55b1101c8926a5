#!/bin/sh
# Few-shot curve: KgCoOp on all classes.
# Arguments: DATASET SHOTS W SEED, or DATASET SHOTS SEED
# bash scripts/kgcoop/fewshot_test.sh caltech101 4 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/fewshot_test "$@"
