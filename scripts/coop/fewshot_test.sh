#!/bin/sh
# Few-shot curve: CoOp on all classes.
# Arguments: DATASET SHOTS SEED
# bash scripts/coop/fewshot_test.sh caltech101 4 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" coop/fewshot_test "$@"
