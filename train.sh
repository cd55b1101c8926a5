#!/usr/bin/env bash
# The main job, from a fresh clone to the table and the path figures:
#
#   bash train.sh                           CoOp -> CoOp_LMC on the built-in benchmark (2 CPU cores: 7 minutes)
#   bash train.sh --trainer NAME            another method pair (now: CoOp);  --all: every pair
#   bash train.sh --data DIR DATASET [SEED...]     public data below DIR, OpenAI weights (a GPU is advised)
#
# Sets itself up (.venv in the clone, unless a virtual environment is active), skips what is finished and goes on
# where it was killed. Results: $OUTPUT/tables, $OUTPUT/figures, and every run's folder. DATA and OUTPUT choose folders.
#
# The same, command by command, for one data set and seed:
#
#   bash scripts/zsclip/base2new_test.sh caltech101 1            zero-shot CLIP on the new classes
#   bash scripts/coop/base2new_train.sh caltech101 1             stage 1: CoOp on the base classes
#   bash scripts/coop/base2base_test.sh caltech101 1
#   bash scripts/coop/base2new_test.sh caltech101 1
#   bash scripts/coop_LMC/base2new_train_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1     stage 2
#   bash scripts/coop_LMC/base2base_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
#   bash scripts/coop_LMC/base2new_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
#   python -m mergetune.report output                            the table of all runs
set -eu
root=$(cd "$(dirname "$0")" && pwd -P)
. "$root/scripts/setup.sh"
setup requirements.txt
exec "$python" "$root/scripts/main_job.py" "$@"
