#!/bin/sh
# Cross-data-set: CoOp on DATASET, trained on the source.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/coop/xd_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/xd_test "$@"
