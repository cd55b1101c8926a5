#!/bin/sh
# ConDU: the same of a fully fine-tuned stream without telling the task.
# Arguments: ORDER (I, II, or data sets of configs/datasets/mtil as a,b,c; default I)
# Environment: CFG (default mtil_ft; a few-shot stream: CFG=fewshot_mtil_ft), SEEDS (default 1), DATA, OUTPUT.
# Every data set after every session by the vote; labels: the data set's own classes, or all learned ones with them.
# bash scripts/condu/eval_agnostic_MTIL_FT.sh I
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" condu/eval_agnostic_MTIL_FT "$@"
