#!/bin/sh
# Few-shot curve: Zero-shot CLIP on all classes.
# Arguments: DATASET SEED, or DATASET SEED CFG
# bash scripts/zsclip/fewshot_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" zsclip/fewshot_test "$@"
