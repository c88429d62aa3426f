#!/usr/bin/env bash
# Evaluate on several GPUs or, with none, in as many processes on the CPU. Several machines: run it
# on each with NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT set. See docs/training.md.
set -euo pipefail

if [ $# -lt 3 ]; then
    echo "usage: [NNODES=1 NODE_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=free] $0 CONFIG CHECKPOINT GPUS [test.py options]" >&2
    exit 2
fi
source "$(dirname "${BASH_SOURCE[0]}")/torchrun.sh"
torchrun_tool "$3" test.py "$1" "$2" "${@:4}"
