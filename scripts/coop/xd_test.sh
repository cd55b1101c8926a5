#!/bin/sh
# Cross-data-set: CoOp on DATASET, trained on the source.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/coop/xd_test.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" coop/xd_test "$@"
