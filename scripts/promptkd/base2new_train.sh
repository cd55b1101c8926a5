#!/bin/sh
# Stage 1: PromptKD on all training images of all classes, without labels.
# Arguments: DATASET SEED
# bash scripts/promptkd/base2new_train.sh caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptkd/base2new_train "$@"
