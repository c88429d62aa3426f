"""For a GPU only: graphs, saturating batches, the rates of the machine, and the least time."""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from visattn_dense.layers.graphs import record_on_gpu

from .isolation import out_of_memory
from .timing import Call, measure

_COPIED = 2**30
MAX_BATCH = 512


def graphed(call: Call) -> Call:
    """The call's kernels as one CUDA graph: replaying costs no launches."""
    graph_replay, kept = record_on_gpu(call)

    def replay(kept: object = kept) -> None:
        graph_replay()

    return replay


def memory_copy(device: torch.device) -> tuple[Call, float]:
    """A copy of a gibibyte, and the bytes that it reads and writes."""
    source = torch.ones(_COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 2. * _COPIED


def saturating_batch(call_of: Callable[[int], Call], device: torch.device) -> int | None:
    """The batch, a power of two, after which images per second grow by less than 5 %.

    Returns:
        The batch; None if not even one image fits.
    """
    best, took = None, float('inf')
    batch = 1
    while batch <= MAX_BATCH:
        try:
            now = measure(call_of(batch), device, warmup=2, runs=3).p50 / batch
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            torch.cuda.empty_cache()
            break
        if now > 0.95 * took:
            break
        best, took, batch = batch, now, 2 * batch
    return best


def compulsory_bytes(module: nn.Module, tensors: tuple[torch.Tensor, ...], itemsize: int) -> int:
    """Bytes that even a perfectly fused network moves: weights, input and outputs, once each."""
    numbers = sum(p.numel() for p in module.parameters()) + sum(t.numel() for t in tensors)
    return numbers * itemsize


def floor_ms(moved: float, flops: float, bandwidth: float, rate: float) -> float:
    """max(bytes / bandwidth, FLOPs / rate) in milliseconds; bandwidth and rate are per second."""
    return 1e3 * max(moved / bandwidth, flops / rate)
