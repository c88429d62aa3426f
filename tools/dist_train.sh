#!/usr/bin/env bash
# Train on several GPUs or, with none, in as many processes on the CPU. Several machines: run it on
# each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set. See docs/training.md.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=free] $0 CONFIG GPUS [train.py options]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"
torchrun_tool "$2" train.py "$1" "${@:3}"
