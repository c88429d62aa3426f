#!/usr/bin/env bash
# Train under slurm. GPUS (default 8), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS are read
# from the environment; GPUS_PER_NODE=0 runs GPUS processes on CPUs. See docs/training.md.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [GPUS=8 GPUS_PER_NODE=8 CPUS_PER_TASK=5 SRUN_ARGS=...] $0 PARTITION JOB_NAME CONFIG [train.py options]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/srun.sh"
srun_tool "$1" "$2" train.py "$3" "${@:4}"
