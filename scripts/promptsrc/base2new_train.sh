#!/bin/sh
# PromptKD's teacher: PromptSRC, 16 shots of the base classes.
# Arguments: DATASET SEED
# bash scripts/promptsrc/base2new_train.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptsrc/base2new_train "$@"
