#!/bin/sh
# PromptKD: its accuracy on the base classes.
# Arguments: DATASET SEED
# bash scripts/promptkd/base2base_test.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptkd/base2base_test "$@"
