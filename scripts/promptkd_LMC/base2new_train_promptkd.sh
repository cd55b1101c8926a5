#!/bin/sh
# Stage 2: MERGETUNE from a PromptKD run.
# Arguments: DATASET SEED STUDENT_DIR KD_WEIGHT BETA N, or DATASET SEED, or DATASET SEED STUDENT_DIR KD_WEIGHT, or DATASET SEED STUDENT_DIR KD_WEIGHT BETA
# bash scripts/promptkd_LMC/base2new_train_promptkd.sh caltech101 1 output/my_student 1000.0
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptkd_LMC/base2new_train_promptkd "$@"
