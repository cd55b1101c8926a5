#!/bin/sh
# PromptSRC, PromptKD's teacher: its accuracy on the base classes.
# Arguments: DATASET SEED
# bash scripts/promptsrc/base2base_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptsrc/base2base_test "$@"
