#!/bin/sh
# ConDU: accuracy matrix, Transfer, Average and Last of a fully fine-tuned stream.
# Arguments: ORDER (I, II, or data sets of configs/datasets/mtil as a,b,c; default I)
# Environment: CFG (default mtil_ft; a few-shot stream: CFG=fewshot_mtil_ft), SEEDS (default 1), DATA, OUTPUT.
# Every data set after every session in one pass: a learned task by its own expert, any other by the vote.
# bash scripts/condu/eval_MTIL_FT.sh I
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" condu/eval_MTIL_FT "$@"
