#!/bin/sh
# KgCoOp: its accuracy on the base classes.
# Arguments: DATASET W SEED, or DATASET SEED
# bash scripts/kgcoop/base2base_test.sh caltech101 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/base2base_test "$@"
