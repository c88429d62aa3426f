"""The training data as a stream that can be entered at any batch.

    sampler (the user's) -> DrawBatchSampler -> indices that know their draw -> dataset

`DrawBatchSampler` numbers the batches over the whole run and writes (batch, slot) on each index.
`fetch_seeded` seeds the random generators by that number before the dataset loads the sample, so
the augmentation of a sample does not depend on which worker loads it, on how many there are or on
what was loaded before. Skipping to batch n is counting indices: no image is read.
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
    """An index into a dataset that also says which draw of the run it is."""

    batch: int
    slot: int

    @classmethod
    def of(cls, index: int, batch: int, slot: int) -> Draw:
        draw = cls(index)
        draw.batch, draw.slot = batch, slot
        return draw


@DATA_SAMPLERS.register_module()
class DrawBatchSampler:
    """Numbers the batches of another batch sampler, and can begin at a later one.

    Args:
        sampler: yields indices.
        batch_size: samples per batch.
        batch_sampler: config of the batch sampler to number; torch's `BatchSampler` where None.
        drop_last: for torch's `BatchSampler`: leave out a last, smaller batch.

    Attributes:
        count: batches taken from the wrapped sampler so far in this process, over all passes.
        first: batches numbered below it are passed over.
    """

    def __init__(self, sampler: Sampler, batch_size: int, batch_sampler: Mapping | None = None,
                 drop_last: bool = False) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        if batch_sampler is None:
            self.inner: Any = BatchSampler(sampler, batch_size, drop_last)
        else:
            self.inner = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size))
        self.count = 0
        self.first = 0
        self._passes_skipped = 0

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Iterator[list[Draw]]:
        # The loop counts the passes since it was started; those before a resume come on top.
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

    What is no config, or has a batch sampler built already, comes back as it is.
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
    """Let the dataset of a numbered dataloader load each draw under its own seed."""
    if isinstance(dataloader.batch_sampler, DrawBatchSampler) and seed is not None:
        # torch's loader asks the dataset for whole batches where it has this method. An attribute
        # of the instance leaves the dataset's class, and all that samplers and hooks ask of it.
        dataloader.dataset.__getitems__ = partial(
            fetch_seeded, dataloader.dataset, derive_seed(seed, get_rank()))


def fetch_seeded(dataset: Dataset, seed: int, indices: Iterable[int]) -> list[Any]:
    """The samples of a batch, each loaded under the seed of its draw.

    Raises:
        UserError: a sample cannot be loaded; the message names its files.
    """
    samples = []
    # A worker process has its generators to itself; the main process shares them with the model.
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
        # Not every dataset can say; the index alone has to do.
        return ''
    return f' ({", ".join(files)})' if files else ''


class _Trained:
    """An iterator over batches that answers its first `behind` calls with None.

    mmengine's iteration loop, once resumed, asks for every batch that was trained before and drops
    it. Reading them would take as long as loading for the whole run so far.
    """

    def __init__(self, batches: Iterator, behind: int) -> None:
        self._batches = batches
        self._behind = behind

    def __iter__(self) -> _Trained:
        return self

    def __next__(self) -> Any:
        if self._behind:
            self._behind -= 1
            return None
        return next(self._batches)


def enter_at(loop: BaseLoop) -> None:
    """Let a train loop that has just been resumed go on with the batch after its last one."""
    draws = loop.dataloader.batch_sampler
    if not isinstance(draws, DrawBatchSampler):
        return
    done = loop.iter
    if hasattr(loop, 'dataloader_iterator'):
        # Batches that workers began to load when the loop was built arrive first and are dropped.
        in_flight = min(draws.count, done)
        loop.dataloader_iterator = _Trained(loop.dataloader_iterator, done - in_flight)
        draws.first = done
    else:
        draws.count = loop.epoch * len(loop.dataloader)
        # In the middle of an epoch, unless the data has changed meanwhile.
        inside = draws.count <= done < draws.count + len(loop.dataloader)
        draws.first = done if inside else draws.count
