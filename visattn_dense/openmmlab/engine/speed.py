"""How fast a training is, in each line of its log: images per second, and the wait for data."""
from __future__ import annotations

import logging
import re
import time
from collections import deque
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.registry import LOG_PROCESSORS
from mmengine.runner import LogProcessor

from visattn_dense.files import cores

log = logging.getLogger('visattn_dense')

_WINDOW = 100
_TOO_MUCH = 0.2
# Fewer iterations, or a shorter time, say nothing about the rest of the run.
_LEAST_ITERATIONS, _LEAST_SECONDS = 20, 5.


class SpeedHook(Hook):
    """Measures the last iterations: the wait for the batch, and the work on the batch.

    Validations, saved checkpoints and pictures between two iterations are no wait. If the wait is
    more than a fifth of the time, a warning says so once and names the remedy.
    """

    # Leaves an iteration after all other hooks, so what these do is no wait.
    priority = 'LOWEST'

    def __init__(self) -> None:
        self._spans: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._left: float | None = None
        self._begun = 0.
        self._waited: float | None = None
        self._warned = False

    def before_train(self, runner) -> None:
        # The first wait is the start of the workers.
        self._left = None

    def before_train_iter(self, runner, batch_idx: int, data_batch: Any = None) -> None:
        self._begun = time.perf_counter()
        self._waited = None if self._left is None else self._begun - self._left

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        self._left = time.perf_counter()
        if self._waited is not None:
            self._spans.append((self._waited, self._left - self._begun))
            self._warn(runner)

    def after_val(self, runner) -> None:
        self._left = time.perf_counter()

    def measured(self) -> tuple[float, float] | None:
        """Seconds per iteration, and the share of the wait; None before the second iteration."""
        if not self._spans:
            return None
        waited, worked = (sum(part) for part in zip(*self._spans, strict=True))
        whole = waited + worked
        return (whole / len(self._spans), waited / whole) if whole > 0 else None

    def _warn(self, runner) -> None:
        if self._warned or len(self._spans) < _LEAST_ITERATIONS:
            return
        took, share = self.measured() or (0., 0.)
        if share > _TOO_MUCH and took * len(self._spans) > _LEAST_SECONDS:
            self._warned = True
            log.warning(f'{100 * share:.0f} % of the time is a wait for data. '
                        + remedy(getattr(runner.train_dataloader, 'num_workers', 0), cores()))


def remedy(workers: int, available: int) -> str:
    """What to do about a long wait for data, with `workers` of a loader on `available` cores."""
    if workers == 0:
        return ('The training itself loads the images: --cfg-options '
                f'train_dataloader.num_workers={max(1, min(4, available - 1))} loads the images '
                'beside the training.')
    if workers < available:
        return (f'train_dataloader.num_workers is {workers}, and {available} cores are here: try '
                f'--cfg-options train_dataloader.num_workers={min(available, 2 * workers)}.')
    return (f'{workers} workers on {available} cores cannot load faster: store the images at about '
            'the size of the training, on a local disk, or leave out costly transforms.')


@LOG_PROCESSORS.register_module()
class SpeedLogProcessor(LogProcessor):
    """mmengine's LogProcessor with images per second and the wait for data from `SpeedHook`.

    A line about a validation leaves out the AP of each class (the table above the line has these).
    """

    def get_log_after_iter(self, runner, batch_idx: int, mode: str) -> tuple[dict, str]:
        tag, text = super().get_log_after_iter(runner, batch_idx, mode)
        hook = next((hook for hook in runner.hooks if isinstance(hook, SpeedHook)), None)
        measured = hook.measured() if hook is not None and mode == 'train' else None
        if measured is None:
            return tag, text
        took, share = measured
        batch = getattr(getattr(runner.train_dataloader, 'batch_sampler', None), 'batch_size', None)
        if isinstance(batch, int):
            rate = batch * get_world_size() / took
            tag['images_per_second'] = rate
            text += f'  images/s: {rate:.3g}'
        tag['waiting_for_data'] = share
        return tag, f'{text}  waiting for data: {100 * share:.0f} %'

    def get_log_after_epoch(self, *args, **kwargs) -> tuple[dict, str]:
        tag, text = super().get_log_after_epoch(*args, **kwargs)
        return tag, '  '.join(part for part in text.split('  ')
                              if not re.search(r'_precision: \S+$', part))
