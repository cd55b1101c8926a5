#!/bin/sh
# ConDU on the built-in benchmark, whole: eight experts, their fusion, five baselines, the accuracy matrix and t-SNE as
# figures, 20 random orders fused from the same experts, and the ablations. Two processes; about 20 minutes on 2 cores.
# Arguments: [--orders N] [--tasks a,b,c] [--lora] [--seeds K ...] (means and deviations over these)
# Environment: SEEDS (default 1), DATA, OUTPUT. Goes on where it was stopped.
# bash scripts/condu/toy_stream.sh --orders 20
root=$(cd "$(dirname "$(readlink -f "$0")")/../.." && pwd -P)
. "$root/scripts/setup.sh"
asks_help "$@" || setup requirements.txt || exit 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" condu/toy_stream "$@"
