#!/bin/sh
# Stage 1: CoOp, 16 shots of the base classes.
# Arguments: DATASET SEED
# bash scripts/coop/base2new_train.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/base2new_train "$@"
