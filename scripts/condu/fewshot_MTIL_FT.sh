#!/bin/sh
# ConDU: an MTIL stream of five images a class, full fine-tuning of both towers.
# Arguments: ORDER (I, II, or data sets of configs/datasets/mtil as a,b,c; default I)
#            --keep-experts: for fusing them in other orders, an analysis outside the continual-learning protocol
# Environment: CFG (default fewshot_mtil_ft), SEEDS (default 1; "1 2 3" for several), GPUS (torchrun), DATA, OUTPUT.
# Goes on where it was stopped. Every session's state is kept, for eval_MTIL_FT.sh and eval_agnostic_MTIL_FT.sh.
# bash scripts/condu/fewshot_MTIL_FT.sh I
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" condu/fewshot_MTIL_FT "$@"
