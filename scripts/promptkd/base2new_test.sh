#!/bin/sh
# PromptKD: its accuracy on the new classes.
# Arguments: DATASET SEED
# bash scripts/promptkd/base2new_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptkd/base2new_test "$@"
