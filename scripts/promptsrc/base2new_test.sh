#!/bin/sh
# PromptSRC, PromptKD's teacher: its accuracy on the new classes.
# Arguments: DATASET SEED
# bash scripts/promptsrc/base2new_test.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" promptsrc/base2new_test "$@"
