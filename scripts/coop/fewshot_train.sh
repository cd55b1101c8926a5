#!/bin/sh
# Stage 1: CoOp, SHOTS images of every class.
# Arguments: DATASET SHOTS SEED
# bash scripts/coop/fewshot_train.sh caltech101 4 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/fewshot_train "$@"
