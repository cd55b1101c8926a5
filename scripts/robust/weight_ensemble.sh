#!/bin/sh
# Weight ensemble of zero-shot CLIP and a robust run of METHOD (linear_probe, finetune, or one with _LMC and its CFG).
# Arguments: METHOD DATASET CFG SEED, or METHOD DATASET SEED
# bash scripts/robust/weight_ensemble.sh finetune_LMC imagenet paper 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" robust/weight_ensemble "$@"
