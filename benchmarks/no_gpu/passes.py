"""The table of passes on a GPU that is not there. Run by `table`, in a process of its own."""
from __future__ import annotations

import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from visattn_dense.errors import UserError

from .. import subjects
from ..options import Size, parse_size
from . import library

LAUNCH_NS = 2000
"""Nanoseconds that a driver takes for a launch, about."""
ROUNDS = 15

KINDS = 'forward', 'training', 'with_cp', 'graphs'
"""Forward alone; a training step; a training step that computes activations again; a training step
by the graphs of the backbone."""


class Pass(NamedTuple):
    """What the host did for a pass.

    Attributes:
        launches: kernels, copies and fills that torch and Triton started.
        host_ms: the median of `ROUNDS` passes.
        peak_gib: the largest sum of tensors on the device, above the weights; with graphs, their
            memory too.
    """
    launches: int
    host_ms: float
    peak_gib: float


def table(names: list[str], sizes: dict[Size, int]) -> Iterator[str]:
    """Rows of a Markdown table, as they become known.

    Args:
        names: backbones, such as 'CSWin:small'.
        sizes: image sizes, with the batch of each.

    Raises:
        UserError: see `library.environment`; or the passes broke.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'benchmarks.no_gpu.passes', ','.join(names),
                   *(f'{size}:{batch}' for size, batch in sizes.items())]
        with subprocess.Popen(command, env=library.environment(Path(folder), LAUNCH_NS),
                              stdout=subprocess.PIPE, text=True) as process:
            yield from (line.rstrip('\n') for line in process.stdout)
        if process.returncode:
            raise UserError(f'the passes without a GPU ended with {process.returncode}; see above')


def rows(names: list[str], sizes: dict[Size, int]) -> Iterator[str]:
    """The rows, in a process in which the library stands in the place of NVIDIA's."""
    yield '| backbone | size | batch | pass | launches | host, ms | µs for a launch | peak, GiB |'
    yield '| --- | --- | --- | --- | --- | --- | --- | --- |'
    for name in names:
        subject = subjects.backbone(name)
        model = subject.make().cuda()
        for size, batch in sizes.items():
            for kind in KINDS:
                found = measured(model, batch, size, kind)
                yield (f'| {subject.name} | {size} | {batch} | {kind} | {found.launches} | '
                       f'{found.host_ms:.1f} | {1e3 * found.host_ms / found.launches:.0f} | '
                       f'{found.peak_gib:.3f} |')


def measured(model: nn.Module, batch: int, size: Size, kind: str) -> Pass:
    """Forward in inference mode, or forward and backward, inside autocast to bfloat16.

    Args:
        model: on the device.
        batch, size: of the images.
        kind: one of `KINDS`.
    """
    x = torch.empty(batch, 3, *size, device='cuda')
    model.with_cp = kind == 'with_cp'
    if kind == 'graphs':
        model.graph_training()
    run = _forward(model.eval(), x) if kind == 'forward' else _training_step(model.train(), x)
    for _ in range(3):
        run()
    counter = ctypes.CDLL(None).visattn_launches
    counter.restype = ctypes.c_long
    torch.cuda.reset_peak_memory_stats()
    before, memory = counter(), torch.cuda.memory_allocated()
    run()
    launches, peak = counter() - before, torch.cuda.max_memory_allocated() - memory
    if kind == 'graphs':
        assert model.forward._graphs, 'nothing was recorded'
        peak += sum(segment['total_size'] for segment in torch.cuda.memory_snapshot()
                    if segment['segment_pool_id'] != (0, 0))
    times = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    vars(model).pop('forward', None)             # the graphs go
    torch.cuda.empty_cache()
    return Pass(launches, 1e3 * statistics.median(times), peak / 2**30)


def _forward(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode(), torch.autocast('cuda', torch.bfloat16):
            model(x)
    return run


def _training_step(model: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    def run() -> None:
        with torch.autocast('cuda', torch.bfloat16):
            loss = sum(out.float().mean() for out in model(x))
        loss.backward()
        model.zero_grad(set_to_none=True)
    return run


if __name__ == '__main__':
    pairs = (argument.split(':') for argument in sys.argv[2:])
    for row in rows(sys.argv[1].split(','), {parse_size(size, 1): int(batch)
                                             for size, batch in pairs}):
        print(row, flush=True)
    # The device threads of autograd may end after what they need.
    os._exit(0)
