#!/bin/sh
# Domain generalisation: KgCoOp on DATASET, trained on the source.
# Arguments: DATASET W SEED, or DATASET SEED, or DATASET W SEED SOURCE
# bash scripts/kgcoop/dg_test.sh imagenet_a 8.0 1
exec sh "$(dirname "$(readlink -f "$0")")/../run.sh" kgcoop/dg_test "$@"
