"""How long calls take, alone or in turns; the rate of matrix products; how time grows."""
from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch

from .isolation import out_of_memory

Call = Callable[[], object]
_SHORT_MS = 100.


class Latency(NamedTuple):
    """Milliseconds of a call: percentiles over `runs` of them, and their mean."""

    p50: float
    p90: float
    p99: float
    least: float
    mean: float
    runs: int


def measure(run: Call, device: torch.device, *, warmup: int = 3, runs: int = 20,
            seconds: float | None = None,
            watch: Callable[[Iterable[int]], Iterable[int]] = iter) -> Latency:
    """Time a call several times, each time until a GPU has finished.

    Args:
        run: the call.
        device: where it computes.
        warmup: calls before those that count.
        runs: calls that count, at least 1.
        seconds: no new call begins after this time, so there may be fewer calls than `runs`; None
            for no limit.
        watch: wraps the numbers of the calls, for a progress bar.

    Raises:
        ValueError: `runs` is below 1 or `warmup` below 0.
    """
    if runs < 1 or warmup < 0:
        raise ValueError(f'at least 1 run and no negative warm-up, got {runs} and {warmup}')
    begun = time.perf_counter()
    took = []
    for number in watch(range(warmup + runs)):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        end = time.perf_counter()
        if number >= warmup:
            took.append(1e3 * (end - start))
            if seconds is not None and end - begun > seconds:
                break
        elif number == warmup - 1:
            # The limit counts from here: compilation belongs to the warm-up.
            begun = end
    p50, p90, p99 = np.percentile(took, (50, 90, 99)).tolist()
    return Latency(p50, p90, p99, min(took), float(np.mean(took)), len(took))


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def interleave(calls: Mapping[str, Call], device: torch.device, *, runs: int, seconds: float
               ) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Time calls in turn, so that other work on the machine slows all calls alike.

    Args:
        calls: name -> call.
        device: where the calls compute.
        runs: number of rounds, at least 1. Before these, each call runs once without being counted.
        seconds: no round begins after this time, except the first round.

    Returns:
        Name -> milliseconds of every round; and name -> reason, for a call without a time.
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
