#!/bin/sh
# Zero-shot CLIP with many templates on the new classes.
# Arguments: DATASET SEED
# bash scripts/zsclip2/base2new_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" zsclip2/base2new_test "$@"
