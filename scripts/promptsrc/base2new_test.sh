#!/bin/sh
# PromptSRC, PromptKD's teacher: its accuracy on the new classes.
# Arguments: DATASET SEED
# bash scripts/promptsrc/base2new_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptsrc/base2new_test "$@"
