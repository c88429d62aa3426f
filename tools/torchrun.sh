# Sourced by dist_train.sh and dist_test.sh: torchrun_tool GPUS SCRIPT ARGUMENTS...

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

torchrun_tool() {
    # PORT is the former name of MASTER_PORT.
    local gpus=$1 script=$2 port=${MASTER_PORT:-${PORT:-}} where
    shift 2
    if ! [[ $gpus =~ ^[1-9][0-9]*$ ]]; then
        echo "error: the number of GPUs (processes) must be a positive number, got '$gpus'" >&2
        exit 2
    fi
    if [ "${NNODES:-1}" = 1 ] && [ -z "$port" ]; then
        # A port that is free now, so that two runs on one machine do not meet.
        where=(--standalone --local-addr=127.0.0.1)
    else
        where=(--nnodes="${NNODES:-1}" --node-rank="${NODE_RANK:-0}"
               --master-addr="${MASTER_ADDR:-127.0.0.1}" --master-port="${port:-29500}")
    fi
    exec "$PYTHON" "$TOOLS/../visattn_dense/openmmlab/engine/torchrun.py" "${where[@]}" \
        --nproc-per-node="$gpus" "$TOOLS/$script" "$@" --launcher pytorch
}
