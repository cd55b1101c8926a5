#!/bin/sh
# MERGETUNE from a linear probe, all images of the source.
# Arguments: DATASET CFG SEED
# bash scripts/robust/linear_probe_LMC_train.sh imagenet paper 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/linear_probe_LMC_train "$@"
