#!/bin/sh
# CoOp: its accuracy on the base classes.
# Arguments: DATASET SEED
# bash scripts/coop/base2base_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/base2base_test "$@"
