#!/bin/sh
# MERGETUNE from a linear probe: its test on DATASET, the source or a shifted set.
# Arguments: DATASET CFG SEED, or DATASET CFG SEED SOURCE
# bash scripts/robust/linear_probe_LMC_test.sh imagenet_a paper 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/linear_probe_LMC_test "$@"
