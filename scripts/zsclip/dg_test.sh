#!/bin/sh
# Domain generalisation: Zero-shot CLIP on DATASET.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/dg_test.sh imagenet_a 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" zsclip/dg_test "$@"
