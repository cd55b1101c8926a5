#!/bin/sh
# Stage 1: KgCoOp, all classes of the source, for the cross-data-set and domain tests.
# Arguments: DATASET W SEED, or DATASET SEED, or SEED
# bash scripts/kgcoop/xd_train.sh imagenet 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/xd_train "$@"
