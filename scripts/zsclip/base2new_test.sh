#!/bin/sh
# Zero-shot CLIP on the new classes.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/base2new_test.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" zsclip/base2new_test "$@"
