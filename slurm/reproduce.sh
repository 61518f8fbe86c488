#!/bin/bash
# All seven experiments, three seeds each, as one job array: slurm/reproduce.sh --help
cd "$(dirname "$0")/.." || exit
[ -n "${PYTHON-}" ] || { [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; }
exec ${PYTHON:-python} slurm/reproduce.py "$@" # PYTHON may be several words, as in train.sbatch
