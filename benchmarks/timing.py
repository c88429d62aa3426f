"""Calls that take turns, the rate of matrix products beside them, and how time grows."""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import torch

from visattn_dense.benchmark import measure

from .isolation import out_of_memory

Call = Callable[[], object]
_SHORT_MS = 100.


def interleave(calls: Mapping[str, Call], device: torch.device, *, runs: int, seconds: float
               ) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time calls in turn: what else the machine does meets all of them alike.

    Args:
        calls: by name.
        device: where they compute.
        runs: rounds, at least 1, after one call of each that does not count.
        seconds: no round begins after them; the first always takes place.

    Returns:
        Milliseconds of every round by name, and why a call has none by name.
    """
    trouble, took, repeats = {}, {}, {}
    for name, call in calls.items():
        try:
            first = measure(call, device, warmup=0, runs=1).p50
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            trouble[name] = 'does not fit'
            continue
        took[name] = []
        # The call before it leaves its own data in the caches, which shows in short ones.
        repeats[name] = dict(warmup=1, runs=3) if first < _SHORT_MS else dict(warmup=0, runs=1)
    begun = time.perf_counter()
    for number in range(runs):
        # Back and forth: what follows what changes sides.
        for name in list(took)[::1 if number % 2 == 0 else -1]:
            took[name].append(measure(calls[name], device, **repeats[name]).p50)
        if time.perf_counter() - begun > seconds:
            break
    return took, trouble


def summary(took: Sequence[float]) -> dict[str, float]:
    """Median, least and number of times."""
    return dict(ms=statistics.median(took), least_ms=min(took), runs=len(took))


def matrix_product(device: torch.device, dtype: torch.dtype) -> tuple[Call, float]:
    """A matrix product large enough for the machine's full rate, and its FLOPs."""
    n = 8192 if device.type == 'cuda' else 1536
    a, b, out = (torch.ones(n, n, device=device, dtype=dtype) for _ in range(3))

    def run() -> None:
        with torch.inference_mode():
            torch.mm(a, b, out=out)

    return run, 2. * n**3


def growth_exponent(pixels: Sequence[float], times: Sequence[float]) -> float | None:
    """p of time ∝ pixels^p, by least squares over the logarithms; None for fewer than two sizes."""
    if len(set(pixels)) < 2:
        return None
    x, y = [math.log(p) for p in pixels], [math.log(t) for t in times]
    return statistics.linear_regression(x, y).slope
