"""Random numbers that depend only on the position in the run, not on the run's history.

Every training iteration seeds the generators of its process with a number derived from (seed, rank,
iteration). The augmentation of every sample has a seed derived from (seed, rank, iteration, place
in the batch); see `data_stream`. So a resumed run draws the same numbers as an uninterrupted run,
also after a validation, a kill, or with another number of workers. No generator state is saved.
"""
from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


def derive_seed(*numbers: int) -> int:
    """A seed in [0, 2^63). Any change of `numbers` gives an unrelated seed."""
    text = '/'.join(str(int(number)) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), 'big') >> 1


def seed_process(seed: int, *, devices: bool = True) -> None:
    """Seed Python's, NumPy's and torch's generators; not those of GPUs if `devices` is False."""
    random.seed(seed)
    # NumPy's legacy generator, which OpenMMLab's transforms use, takes 32-bit words.
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    if devices:
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restore the states of the CPU generators after the block."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds each training iteration by (seed, rank, iteration)."""

    priority = 'VERY_HIGH'

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        seed_process(derive_seed(runner.seed, runner.rank, runner.iter))
