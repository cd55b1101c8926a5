#!/bin/sh
# Stage 1: CoOp, all classes of the source, for the cross-data-set and domain tests.
# Arguments: DATASET SEED, or SEED
# bash scripts/coop/xd_train.sh imagenet 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/xd_train "$@"
