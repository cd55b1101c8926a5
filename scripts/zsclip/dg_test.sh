#!/bin/sh
# Domain generalisation: Zero-shot CLIP on DATASET.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/dg_test.sh imagenet_a 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" zsclip/dg_test "$@"
