#!/bin/sh
# Stage 1: CoOp on the base classes, 16 shots. Arguments: DATASET SEED
# bash scripts/coop/base2new_train.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" coop/base2new_train "$@"
