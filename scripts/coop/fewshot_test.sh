#!/bin/sh
# Few-shot curve: CoOp on all classes.
# Arguments: DATASET SHOTS SEED
# bash scripts/coop/fewshot_test.sh caltech101 4 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/fewshot_test "$@"
