#!/usr/bin/env bash
# The main job, from a fresh clone to the table and the path figures:
#
#   bash train.sh                           CoOp -> CoOp_LMC on the built-in benchmark (2 CPU cores: 5 minutes with installation)
#   bash train.sh --trainer NAME            another method pair: KgCoOp, MMA, PromptKD, or any stage-2 trainer;  --all:
#                                           every pair, as a workflow (scripts/flow.py) if snakemake is installed
#   bash train.sh --protocol NAME           cross, dg, fewshot, or robust (pairs: LinearProbe, FineTune)
#   bash train.sh --data DIR DATASET [SEED...]     public data below DIR, OpenAI weights (a GPU is advised)
#   bash train.sh ... --check               looks at each data set and tries a run of it: time, memory, problems
#   DRY_RUN=1 bash train.sh ...             prints the command lines that it stands for
#   python scripts/flow.py configs/tables/NAME.yaml      a table of the paper, on many processes, GPUs or machines
#   python scripts/sweep.py configs/sweeps/NAME.yaml     the paper's ablations and its table of backbones
#
# Sets itself up (.venv in the clone, unless a virtual environment is active), skips what is finished and goes on
# where it was killed. Results: $OUTPUT/tables, $OUTPUT/figures, and every run's folder. DATA and OUTPUT choose folders.
#
# The same, command by command, for one data set and seed (the other methods: scripts/*/*.sh, the use in each head):
#
#   bash scripts/zsclip/base2new_test.sh caltech101 1            zero-shot CLIP on the new classes
#   bash scripts/coop/base2new_train.sh caltech101 1             stage 1: CoOp on the base classes
#   bash scripts/coop/base2base_test.sh caltech101 1
#   bash scripts/coop/base2new_test.sh caltech101 1
#   bash scripts/coop_LMC/base2new_train_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1     stage 2
#   bash scripts/coop_LMC/base2base_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
#   bash scripts/coop_LMC/base2new_test_coop.sh caltech101 10.0 cosine True 1.0 1 vit_b16_ep100_ctxv1
#   bash scripts/kgcoop/base2new_train.sh caltech101 8.0 1
#   bash scripts/kgcoop_LMC/base2new_train_kgcoop.sh caltech101 10.0 1.0 1 vit_b16_ep100_ctxv1
#   bash scripts/mma/base2new_train.sh caltech101 1 vit_b16_ep5
#   bash scripts/mma_LMC/base2new_train_mma.sh caltech101 10.0 vit_b16_ep5 1
#   bash scripts/promptsrc/base2new_train.sh caltech101 1        PromptKD's teacher
#   bash scripts/promptkd/base2new_train.sh caltech101 1         its student, whose folder stage 2 is told
#   bash scripts/promptkd_LMC/base2new_train_promptkd.sh caltech101 1 FOLDER 1000.0
#   python -m mergetune.report output                            the table of all runs
set -eu
root=$(cd "$(dirname "$(readlink -f "$0")")" && pwd -P)
. "$root/scripts/setup.sh"
asks_help "$@" || setup requirements.txt
exec "$python" "$root/scripts/main_job.py" "$@"
