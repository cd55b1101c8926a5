#!/bin/sh
# Cross-data-set: KgCoOp on DATASET, trained on the source.
# Arguments: DATASET W SEED, or DATASET SEED, or DATASET W SEED SOURCE
# bash scripts/kgcoop/xd_test.sh caltech101 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/xd_test "$@"
