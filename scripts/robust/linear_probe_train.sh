#!/bin/sh
# A linear probe, all images of the source.
# Arguments: DATASET SEED, or SEED
# bash scripts/robust/linear_probe_train.sh imagenet 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/linear_probe_train "$@"
