"""Which of several forms is the fastest on this machine: measured once, then remembered.

In a model, other layers run between two passes of a layer. So before each call, the measurement
takes the data of the layer out of the caches of the cores.

The memory is a JSON file beside the compiled kernels (see `native.build`). Its name depends on the
processor, on the kernels, on torch, and on the number of threads. With `VISATTN_MEASURE=0` nothing
is measured: the first form is taken, and every machine takes the same one.
"""
from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from visattn_dense.atomic import write_text_whole

from .native.build import cache_folder, processor, sources

_ROUNDS = 3, 20
"""The least and the most rounds of a measurement."""
_AGREE = 1.03
"""A measurement ends when the two best times of every form differ by no more than this factor."""
_GAIN = 0.88
"""A later form is taken if it needs less than this share of the time of the form taken so far.

The first form is a kernel of this package, where there is one. In a model it gains more than alone:
it finds in the caches what the kernel before wrote. In CSWin-T and BiFormer-S, layers of oneDNN
that were as fast alone took 1.1 to 1.3 times as long (AVX-512).
"""
_CACHE = 2**20
"""How many floats replace what is in the caches of one core, where these have less than 4 MiB."""

# Variables that change which instructions oneDNN, torch and the kernels take.
_LIMITS = 'ONEDNN_MAX_CPU_ISA', 'DNNL_MAX_CPU_ISA', 'MKL_ENABLE_INSTRUCTIONS', 'VISATTN_AMX'


def fastest(what: str, names: Sequence[str], calls: Sequence[Callable[[], Any]]) -> str:
    """The name of the call that needs the least time here.

    Args:
        what: the work, with its shapes and dtype; the key of the memory.
        names: one for each call, in the order in which they are usually the fastest: a later form
            has to be twelve percent faster than the one taken so far.
        calls: each does the same work.

    Returns:
        One of the names: the one measured now, or the one remembered from an earlier call.
    """
    if os.environ.get('VISATTN_MEASURE') == '0':
        return names[0]
    path = _path(torch.get_num_threads())
    what = f'{what}: {" or ".join(names)}'       # other forms: another measurement
    remembered = _remembered(path)
    known = remembered.get(what)
    if known in names:
        return known
    seconds = _seconds(calls)
    best = 0
    for i in range(1, len(calls)):
        if seconds[i] < _GAIN * seconds[best]:
            best = i
    name = names[best]
    remembered[what] = name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text_whole(path, json.dumps(remembered, indent=1, sort_keys=True))
    except OSError:
        pass                                     # remembered in this process alone
    return name


@torch.inference_mode()
def _seconds(calls: Sequence[Callable[[], Any]]) -> list[float]:
    """The least seconds of each call, over rounds in which every call has its turn."""
    best = [[float('inf')] * 2 for _ in calls]
    other = torch.empty(torch.get_num_threads() * _CACHE)
    for call in calls:
        call()
    for round_ in range(_ROUNDS[1]):
        for two, call in zip(best, calls, strict=True):
            other.zero_()
            start = time.perf_counter()
            call()
            two[:] = sorted([*two, time.perf_counter() - start])[:2]
        # Other work on the machine disturbs single calls: then there are more rounds.
        if round_ + 1 >= _ROUNDS[0] and all(two[1] <= _AGREE * two[0] for two in best):
            break
    return [two[0] for two in best]


def _path(threads: int) -> Path:
    parts = [processor(), sources(), torch.__version__, torch.backends.cpu.get_cpu_capability(),
             str(threads), *(os.environ.get(name, '') for name in _LIMITS)]
    name = hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]
    return cache_folder() / f'fastest-{name}.json'


@functools.cache
def _remembered(path: Path) -> dict[str, str]:
    try:
        read = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
