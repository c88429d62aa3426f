"""The training data as a stream that can begin at any batch.

    sampler (the user's) -> DrawBatchSampler -> indices with their draw -> dataset

`DrawBatchSampler` numbers the batches of the whole run. Each index gets its draw: (batch, slot).
`fetch_seeded` seeds the random generators by the draw before the dataset loads the sample. So the
augmentation of a sample does not depend on the worker that loads the sample, on the number of
workers, or on earlier samples. To begin at batch n, indices are counted; no image is read.
"""
from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import BaseLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, get_worker_info

from visattn_dense.errors import UserError
from visattn_dense.openmmlab.engine.seeding import derive_seed, generators_kept, seed_process


class Draw(int):
    """An index into a dataset, with its draw: the number of the batch, and the slot in it."""

    batch: int
    slot: int

    @classmethod
    def of(cls, index: int, batch: int, slot: int) -> Draw:
        draw = cls(index)
        draw.batch, draw.slot = batch, slot
        return draw


@DATA_SAMPLERS.register_module()
class DrawBatchSampler:
    """Numbers the batches of another batch sampler, and can begin at a later batch.

    Args:
        sampler: yields indices.
        batch_size: samples per batch.
        batch_sampler: config of the other batch sampler; None for torch's `BatchSampler`.
        drop_last: leave out a last, smaller batch.

    Attributes:
        count: batches taken from the other sampler so far in this process, in all passes.
        first: batches with a lower number are skipped.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batch_sampler: Mapping | None = None,
                 drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        if batch_sampler is None:
            self.inner: Any = BatchSampler(sampler, batch_size, drop_last)
        else:
            # torch refuses drop_last beside a batch sampler, which may have its own.
            chosen = dict(drop_last=True) if drop_last else {}
            self.inner = DATA_SAMPLERS.build(batch_sampler, default_args=dict(
                sampler=sampler, batch_size=batch_size, **chosen))
        self.count = 0
        self.first = 0
        self._passes_skipped = 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[Draw]]:
        # The loop counts the passes since its start. Passes before a resume are added.
        epoch = getattr(self.sampler, 'epoch', 0)
        while True:
            self._set_epoch(epoch)
            for indices in self.inner:
                number = self.count
                self.count += 1
                if number >= self.first:
                    yield [Draw.of(index, number, slot) for slot, index in enumerate(indices)]
            if self.count >= self.first or len(self.inner) == 0:
                return
            self._passes_skipped += 1

    def _set_epoch(self, epoch: int) -> None:
        if self._passes_skipped and hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch + self._passes_skipped)


def numbered(dataloader: Any) -> Any:
    """The config of a train dataloader with its batch sampler wrapped in `DrawBatchSampler`.

    A dataloader that is not a config, or whose batch sampler is already built, is returned
    unchanged.
    """
    if not isinstance(dataloader, Mapping):
        return dataloader
    inner = dataloader.get('batch_sampler')
    if 'batch_size' not in dataloader or not (inner is None or isinstance(inner, Mapping)):
        return dataloader
    if inner is not None and inner.get('type') in (DrawBatchSampler, DrawBatchSampler.__name__):
        return dataloader
    out = {key: value for key, value in dataloader.items() if key != 'drop_last'}
    out['batch_sampler'] = dict(type=DrawBatchSampler, batch_sampler=inner,
                                drop_last=dataloader.get('drop_last', False))
    return out


def seed_draws(dataloader: DataLoader, seed: int | None) -> None:
    """Let the dataset of a numbered dataloader load each draw with a seed of its own."""
    if isinstance(dataloader.batch_sampler, DrawBatchSampler) and seed is not None:
        # If the dataset has this method, torch's loader calls it for whole batches. An attribute of
        # the instance changes neither the dataset's class nor its other attributes.
        dataloader.dataset.__getitems__ = partial(
            fetch_seeded, dataloader.dataset, derive_seed(seed, get_rank()))


def fetch_seeded(dataset: Dataset, seed: int, indices: Iterable[int]) -> list[Any]:
    """The samples of a batch, each loaded with the seed of its draw.

    Raises:
        UserError: a sample cannot be loaded; the message names its files.
    """
    samples = []
    # In a worker process only the data use the generators; in the main process the model does too.
    with generators_kept() if get_worker_info() is None else nullcontext():
        for index in indices:
            if isinstance(index, Draw):
                seed_process(derive_seed(seed, index.batch, index.slot), devices=False)
            try:
                samples.append(dataset[int(index)])
            except Exception as error:
                raise UserError(f'cannot load training sample {int(index)}'
                                f'{_files(dataset, int(index))}: {type(error).__name__}: {error}'
                                ) from error
    return samples


def _files(dataset: Any, index: int) -> str:
    try:
        info = dataset.get_data_info(index)
        files = [str(value) for key, value in info.items()
                 if key.endswith('_path') and isinstance(value, (str, os.PathLike))]
    except Exception:
        # Not every dataset knows its files. Then the message has only the index.
        return ''
    return f' ({", ".join(files)})' if files else ''


class _NoneForPastBatches:
    """An iterator over batches. It returns None for the first `past` calls.

    After a resume, mmengine's iteration loop calls for every past batch and drops the batch. To
    read these batches would take as long as to load the data of the whole run so far.
    """

    def __init__(self, batches: Iterator, past: int) -> None:
        self._batches = batches
        self._past = past

    def __iter__(self) -> _NoneForPastBatches:
        return self

    def __next__(self) -> Any:
        if self._past:
            self._past -= 1
            return None
        try:
            return next(self._batches)
        except StopIteration:
            # A pass of past batches alone, after one that the workers had loaded as a whole.
            return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Drop `num_iters` batches. onedl-mmengine's loop calls this in the place of next()."""
        for _ in range(num_iters):
            next(self)


def enter_at(loop: BaseLoop) -> None:
    """Let a train loop that was just resumed continue with the batch after its last batch."""
    draws = loop.dataloader.batch_sampler
    if not isinstance(draws, DrawBatchSampler):
        return
    done = loop.iter
    if hasattr(loop, 'dataloader_iterator'):
        # Workers began to load batches when the loop was built. These arrive first, and the loop
        # drops them.
        in_flight = min(draws.count, done)
        loop.dataloader_iterator = _NoneForPastBatches(loop.dataloader_iterator, done - in_flight)
        draws.first = done
    else:
        length = len(loop.dataloader)
        draws.count = loop.epoch * length
        # The message hub is that of the checkpoint still.
        hub = loop.runner.message_hub
        before = hub.get_info('max_iters', 0) // hub.get_info('max_epochs', 1)
        # In the middle of an epoch or at its end. An epoch of another length begins anew.
        inside = before == length and draws.count <= done <= draws.count + length
        draws.first = done if inside else draws.count
