#!/bin/sh
# MERGETUNE on PromptKD: its accuracy on the base classes.
# Arguments: DATASET SEED STUDENT_DIR KD_WEIGHT BETA N, or DATASET SEED, or DATASET SEED STUDENT_DIR KD_WEIGHT, or DATASET SEED STUDENT_DIR KD_WEIGHT BETA
# bash scripts/promptkd_LMC/base2base_test_promptkd.sh caltech101 1 output/my_student 1000.0
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" promptkd_LMC/base2base_test_promptkd "$@"
