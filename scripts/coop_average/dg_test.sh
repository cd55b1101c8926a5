#!/bin/sh
# Domain generalisation: mean of CLIP's class vectors and those of CoOp trained on the source, on DATASET.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/coop_average/dg_test.sh imagenet_a 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop_average/dg_test "$@"
