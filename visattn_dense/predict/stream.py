"""Read, compute and hand over at the same time, with a bounded number of pictures in memory.

    source -> feeder thread -> reader threads (prepare) -> model thread (run, finish) -> you

While the caller draws and writes one result, the model computes the next batch and the readers
decode the pictures after that. A picture takes a place before it is read and gives the place back
when the caller takes its result, so a stream of any length stays within `places` pictures.
"""
from __future__ import annotations

import contextvars
import threading
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np

from visattn_dense.errors import UserError

from .results import Result
from .sources import Picture

LEAST_SCORE = 0.3
"""Objects of a lower score are left out, unless `conf` says otherwise."""


@dataclass(frozen=True)
class Options:
    """What a caller may ask of the results.

    Attributes:
        conf: the least score of an object; segmentors: the least probability of a pixel's class,
            below it the pixel is ignored. None: see the runtime.
        classes: indices of the classes to keep; None for all.
        max_det: objects of one picture, at most; those of the highest scores stay.
        scores: segmentors also give the probability of each class at each pixel.
        batch_size: windows of one picture that the model gets at once.
    """

    conf: float | None = None
    classes: tuple[int, ...] | None = None
    max_det: int | None = None
    scores: bool = False
    batch_size: int = 1

    def wanted(self, scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Indices of the objects to keep, those of high scores first.

        Args:
            scores, labels: (N,) each, of all objects.
        """
        kept = scores >= (LEAST_SCORE if self.conf is None else self.conf)
        if self.classes is not None:
            kept &= np.isin(labels, self.classes)
        order = np.argsort(-scores, kind='stable')
        return order[kept[order]]


class Prepared(Protocol):
    """A picture, ready for the model. Pictures with equal `key` can share a batch."""

    key: Hashable


class Runtime(Protocol):
    """A trained model, whatever computes it: torch, onnxruntime.

    `prepare` may be called by several threads at once, `run` and `finish` are called by one.
    For pictures larger than memory see `visattn_dense.predict.maps.TiledRuntime`.

    Attributes:
        result: the kind of its results.
        classes, palette: name and RGB triple of each class.
    """

    result: type[Result]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]

    def prepare(self, picture: Picture) -> Prepared:
        """Load, resize and so on. Raises UserError where the picture cannot be read."""

    def run(self, batch: Sequence[Prepared]) -> Sequence[Any]:
        """The model's output for each picture of a batch, all of one key."""

    def finish(self, prepared: Prepared, output: Any, options: Options) -> Result:
        """The result of one picture, at the size of the picture."""


def predictions(runtime: Runtime, pictures: Iterable[Picture], options: Options, *,
                batch_size: int = 1, workers: int = 2) -> Iterator[Result]:
    """The result of each picture, in order.

    Args:
        runtime: the model.
        pictures: asked for in a thread of its own.
        options: of the results.
        batch_size: pictures that the model gets at once. Only pictures of one prepared size share a
            batch, so that no picture is padded and each result is as for the picture alone.
        workers: threads that load and prepare.

    Raises:
        UserError: at once where batch_size or workers is below 1; during the iteration where a
            picture cannot be read: the results before it have come.
    """
    if batch_size < 1 or workers < 1:
        raise UserError(f'batch_size and workers are at least 1, got {batch_size} and {workers}')
    return _Line(runtime, pictures, options, batch_size, workers).results()


class _Line:
    """The threads of one stream."""

    def __init__(self, runtime: Runtime, pictures: Iterable[Picture], options: Options,
                 batch_size: int, workers: int) -> None:
        self.runtime, self.pictures, self.options = runtime, pictures, options
        self.batch_size = batch_size
        # One batch with the caller, one in the model, one in the making.
        self.places = threading.Semaphore(3 * batch_size + workers)
        self.stop = threading.Event()
        self.pool = ThreadPoolExecutor(workers, thread_name_prefix='visattn-prepare')
        self.prepared: SimpleQueue[Future | None] = SimpleQueue()
        self.done: SimpleQueue[Result | BaseException | None] = SimpleQueue()

    def results(self) -> Iterator[Result]:
        # What a caller has set for its own thread, for example an operator's form, holds here too.
        threads = [threading.Thread(target=contextvars.copy_context().run, args=(task,),
                                    name=f'visattn-{task.__name__}', daemon=True)
                   for task in (self.feed, self.compute)]
        for thread in threads:
            thread.start()
        try:
            while (result := self.done.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                self.places.release()
                yield result
                # The caller's name is the only one that holds the result while the next is made.
                del result
        finally:
            # Also where the caller leaves early.
            self.stop.set()
            self.places.release()
            # The feeder may wait in its source for ever, and is not waited for.
            self.prepared.put(None)
            threads[1].join()
            self.pool.shutdown(wait=True, cancel_futures=True)

    def feed(self) -> None:
        """Ask the source for pictures, as places become free."""
        try:
            pictures = iter(self.pictures)
            while True:
                self.places.acquire()
                if self.stop.is_set():
                    break
                picture = next(pictures, None)
                # The source may have taken long.
                if picture is None or self.stop.is_set():
                    break
                self.prepared.put(self.pool.submit(self.runtime.prepare, picture))
                del picture
            close = getattr(pictures, 'close', None)
            if close is not None:
                close()
        except BaseException as error:
            failed: Future = Future()
            failed.set_exception(error)
            self.prepared.put(failed)
        self.prepared.put(None)

    def compute(self) -> None:
        """Collect batches and run the model."""
        try:
            more = True
            while more and not self.stop.is_set():
                batch, failure = [], None
                while more and failure is None and len(batch) < self.batch_size:
                    future = self.prepared.get()
                    if future is None:
                        more = False
                        continue
                    try:
                        batch.append(future.result())
                    except BaseException as error:
                        failure = error
                    del future
                if not self.stop.is_set():
                    self.run(batch)
                del batch
                if failure is not None:
                    raise failure
        except BaseException as error:
            self.done.put(error)
        self.done.put(None)

    def run(self, batch: list[Prepared]) -> None:
        outputs: dict[int, Any] = {}
        for key in dict.fromkeys(prepared.key for prepared in batch):
            members = [i for i, prepared in enumerate(batch) if prepared.key == key]
            found = self.runtime.run([batch[i] for i in members])
            outputs.update(zip(members, found, strict=True))
        for i, prepared in enumerate(batch):
            if self.stop.is_set():
                return
            self.done.put(self.runtime.finish(prepared, outputs.pop(i), self.options))
