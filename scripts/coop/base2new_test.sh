#!/bin/sh
# CoOp: its accuracy on the new classes.
# Arguments: DATASET SEED
# bash scripts/coop/base2new_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/base2new_test "$@"
