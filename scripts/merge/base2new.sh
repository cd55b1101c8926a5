#!/bin/sh
# Merging without training: CLIP and a stage-1 run (coop, kgcoop, mma) by METHOD, on both halves of the classes.
# Arguments: METHOD STAGE1 DATASET SEED
# bash scripts/merge/base2new.sh ties coop caltech101 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" merge/base2new "$@"
