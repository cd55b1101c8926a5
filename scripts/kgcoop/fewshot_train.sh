#!/bin/sh
# Stage 1: KgCoOp, SHOTS images of every class.
# Arguments: DATASET SHOTS W SEED, or DATASET SHOTS SEED
# bash scripts/kgcoop/fewshot_train.sh caltech101 4 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/fewshot_train "$@"
