"""Process groups for one machine or many, with GPUs (nccl) or without (gloo)."""
from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import torch
from mmengine.dist import broadcast_object_list, get_rank, init_dist, is_distributed

from visattn_dense.errors import UserError

# The environment variables in which each launcher gives the rank of a process.
_ENVIRONMENT = {
    'slurm': dict(RANK='SLURM_PROCID', WORLD_SIZE='SLURM_NTASKS', LOCAL_RANK='SLURM_LOCALID'),
    'mpi': dict(RANK='OMPI_COMM_WORLD_RANK', WORLD_SIZE='OMPI_COMM_WORLD_SIZE',
                LOCAL_RANK='OMPI_COMM_WORLD_LOCAL_RANK'),
    'pytorch': dict(RANK='RANK', WORLD_SIZE='WORLD_SIZE', LOCAL_RANK='LOCAL_RANK'),
}


def rank_from_environment(launcher: str) -> int:
    """The rank of this process by its launcher, before there is a process group; 0 without one."""
    return int(os.environ.get(_ENVIRONMENT.get(launcher, {}).get('RANK', ''), 0))


def start(launcher: str, dist_cfg: Mapping | None = None) -> None:
    """Join the process group: nccl with GPUs, gloo on the CPU without GPUs.

    Args:
        launcher: 'none' does nothing; 'pytorch' (torchrun), 'slurm', 'mpi'.
        dist_cfg: the config's `env_cfg.dist_cfg`: backend, timeout in seconds, port (slurm).

    Raises:
        UserError: the launcher's variables are missing, or there are fewer GPUs than processes.
    """
    if launcher == 'none' or is_distributed():
        return
    for name, source in _ENVIRONMENT[launcher].items():
        if source not in os.environ:
            raise UserError(f'--launcher {launcher} needs the variable {source}, which is not set: '
                            f'start with {_STARTED_BY[launcher]}')
        os.environ[name] = os.environ[source]
    settings = dict(dist_cfg or {})
    if torch.cuda.is_available():
        local_rank, count = int(os.environ['LOCAL_RANK']), torch.cuda.device_count()
        if local_rank >= count:
            raise UserError(f'process {local_rank} of this machine has no GPU: {count} visible. '
                            'Start one process per GPU')
        init_dist(launcher, **settings)
        return
    port = settings.get('port')
    os.environ.setdefault('MASTER_PORT', str(port or 29500))
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = _first_slurm_host() if launcher == 'slurm' else '127.0.0.1'
    torch.distributed.init_process_group(
        'gloo', timeout=timedelta(seconds=settings.get('timeout', 1800)))


_STARTED_BY = {'pytorch': 'tools/dist_train.sh (torchrun)', 'slurm': 'tools/slurm_train.sh (srun)',
               'mpi': 'mpirun'}


def _first_slurm_host() -> str:
    nodes = os.environ.get('SLURM_NODELIST', '127.0.0.1')
    try:
        shown = subprocess.run(['scontrol', 'show', 'hostname', nodes], capture_output=True,
                               text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f'cannot tell the first host of {nodes!r} ({error}); '
                        'set MASTER_ADDR') from error
    return shown.stdout.split()[0]


def stop() -> None:
    """Leave the process group, if there is one, and end its threads.

    The model and its training objects refer to the group in cycles, so the threads of the group
    would live longer than the group. A thread that frees a tensor while Python shuts down aborts
    the process, after its work was done. So the cycles are collected here.
    """
    if is_distributed():
        torch.distributed.destroy_process_group()
        gc.collect()


def on_first_rank(task: Callable[[], Any]) -> Any:
    """What `task` returns on rank 0, on every rank. A `UserError` there is raised on every rank."""
    outcome: list[Any] = [None]
    if get_rank() == 0:
        try:
            outcome[0] = task()
        except UserError as error:
            outcome[0] = error
    broadcast_object_list(outcome)
    if isinstance(outcome[0], UserError):
        raise outcome[0]
    return outcome[0]
