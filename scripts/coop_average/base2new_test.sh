#!/bin/sh
# Mean of CLIP's and CoOp's class vectors on the new classes.
# Arguments: DATASET SEED
# bash scripts/coop_average/base2new_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_average/base2new_test "$@"
