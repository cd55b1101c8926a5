#!/bin/sh
# A linear probe: its test on DATASET, the source or a shifted set.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/robust/linear_probe_test.sh imagenet_a 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" robust/linear_probe_test "$@"
