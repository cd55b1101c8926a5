#!/bin/sh
# PromptSRC, PromptKD's teacher: its accuracy on the base classes.
# Arguments: DATASET SEED
# bash scripts/promptsrc/base2base_test.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" promptsrc/base2base_test "$@"
