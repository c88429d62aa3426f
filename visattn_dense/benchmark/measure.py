"""How long a call takes, again and again."""
from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch


class Latency(NamedTuple):
    """Milliseconds of a call: percentiles over `runs` of them, and their mean."""

    p50: float
    p90: float
    p99: float
    least: float
    mean: float
    runs: int


def measure(run: Callable[[], object], device: torch.device, *, warmup: int = 3, runs: int = 20,
            seconds: float | None = None,
            watch: Callable[[Iterable[int]], Iterable[int]] = iter) -> Latency:
    """Time a call, each one to its end: a GPU is waited for.

    Args:
        run: the call.
        device: where it computes.
        warmup: calls before those that count.
        runs: calls that count, at least 1.
        seconds: stop after the call during which this time is over, with fewer calls than `runs`;
            without a limit where None.
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
            # Compilation and the like are over: the limit is for what counts.
            begun = end
    p50, p90, p99 = np.percentile(took, (50, 90, 99)).tolist()
    return Latency(p50, p90, p99, min(took), float(np.mean(took)), len(took))


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
