#!/bin/sh
# Stage 1: PromptKD on all training pictures of all classes, without labels.
# Arguments: DATASET SEED
# bash scripts/promptkd/base2new_train.sh caltech101 1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" promptkd/base2new_train "$@"
