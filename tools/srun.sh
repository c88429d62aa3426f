# Sourced by slurm_train.sh and slurm_test.sh: srun_tool PARTITION JOB_NAME SCRIPT ARGUMENTS...

source "$(dirname "${BASH_SOURCE[0]}")/python.sh"

srun_tool() {
    local partition=$1 job=$2 script=$3 gpus=${GPUS:-8} per_node=${GPUS_PER_NODE:-8} request=() extra=()
    shift 3
    if [ "$per_node" != 0 ]; then
        if [ "$per_node" -gt "$gpus" ]; then per_node=$gpus; fi
        request=(--gres="gpu:$per_node" --ntasks-per-node="$per_node")
    fi
    # Words of SRUN_ARGS are separate arguments.
    read -r -a extra <<< "${SRUN_ARGS:-}"
    # Jobs that share a node must not share a port.
    export MASTER_PORT="${MASTER_PORT:-${PORT:-$((20000 + RANDOM % 20000))}}"
    exec srun -p "$partition" --job-name="$job" --ntasks="$gpus" \
        --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
        ${request[@]+"${request[@]}"} ${extra[@]+"${extra[@]}"} \
        "$PYTHON" -u "$TOOLS/$script" "$@" --launcher slurm
}
