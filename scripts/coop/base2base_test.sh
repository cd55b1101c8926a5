#!/bin/sh
# CoOp: its accuracy on the base classes.
# Arguments: DATASET SEED
# bash scripts/coop/base2base_test.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" coop/base2base_test "$@"
