#!/bin/sh
# KgCoOp: its accuracy on the new classes.
# Arguments: DATASET W SEED, or DATASET SEED
# bash scripts/kgcoop/base2new_test.sh caltech101 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/base2new_test "$@"
