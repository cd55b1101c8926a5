#!/bin/sh
# Stage 1: KgCoOp, 16 shots of the base classes.
# Arguments: DATASET W SEED, or DATASET SEED
# bash scripts/kgcoop/base2new_train.sh caltech101 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/base2new_train "$@"
