#!/bin/sh
# Learning rates on the toy stream: own and other accuracy of single experts, and Transfer, Average and Last of the stream
# that they are fused to, by both votes, beside zero-shot CLIP. Two processes; about an hour on 2 cores.
# --choose: the rate with the highest mean of own and other accuracy on validation images, instead.
# Arguments: [--choose] [--lora] [--tasks a,b,c] [--rates R ...]
# Environment: SEEDS (default 1), DATA, OUTPUT. Goes on where it was stopped; OUTPUT/mtil_rates takes 2 GB.
# bash scripts/condu/toy_rates.sh --choose
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd -P)
. "$root/scripts/setup.sh"
asks_help "$@" || setup requirements.txt || exit 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" condu/toy_rates "$@"
