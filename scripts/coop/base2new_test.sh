#!/bin/sh
# CoOp: its accuracy on the new classes.
# Arguments: DATASET SEED
# bash scripts/coop/base2new_test.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" coop/base2new_test "$@"
