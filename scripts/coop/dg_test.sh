#!/bin/sh
# Domain generalisation: CoOp on DATASET, trained on the source.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/coop/dg_test.sh imagenet_a 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/dg_test "$@"
