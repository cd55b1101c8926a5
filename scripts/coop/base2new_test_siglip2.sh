#!/bin/sh
# CoOp: its accuracy on the new classes. On SigLIP 2, seeds 1 to 3.
# Arguments: DATASET, or DATASET CFG
# bash scripts/coop/base2new_test_siglip2.sh caltech101
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" coop/base2new_test_siglip2 "$@"
