#!/bin/sh
# A linear probe: its test on DATASET, the source or a shifted set.
# Arguments: DATASET SEED, or DATASET SEED SOURCE
# bash scripts/robust/linear_probe_test.sh imagenet_a 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/linear_probe_test "$@"
