#!/bin/sh
# The merged prompt on the base classes. Arguments as the training script's
# bash scripts/coop_LMC/base2base_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
exec sh "$(cd "$(dirname "$0")/.." && pwd -P)/run.sh" coop_LMC/base2base_test_coop "$@"
