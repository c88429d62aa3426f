"""Replay the passes of a module: one recording, a graph, for each shape of the input.

On a GPU, a recording is a CUDA graph: one launch starts all kernels of a pass. On a CPU, it is a
list of the calls of kernels and operators (`visattn_dense.ops.native.recording`): no Python runs
between them.
"""
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.ops import native

from .plain import HOOKS_OF_ALL

Outputs = tuple[Tensor, ...]
Recorder = Callable[[Callable[[], Outputs]], Callable[[], Outputs]]
"""Records a call. The result makes the call again, and gives outputs that belong to the caller."""

_SEEN = 256
"""The number of shapes that are remembered until they come again."""
_OFTEN = 4
"""How often a shape comes, while the oldest graph is not used, before it takes the place of that
graph. A recording takes longer than a pass: with more shapes than graphs, each in its turn, graphs
would otherwise cost time."""


class Replayable:
    """A second base class, beside nn.Module, of a module that maps one tensor to a tuple of tensors
    and never reads a value of a tensor."""


def record_on_gpu(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record the kernels of a call.

    Args:
        call: runs on the current stream of a CUDA device. Its inputs stay at their addresses.

    Returns:
        A function that runs the kernels again; and the outputs, which each replay overwrites.
    """
    warm_up(call)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


def warm_up(call: Callable[[], Any]) -> torch.cuda.Stream:
    """Make a call three times on a stream of its own, as CUDA asks before a recording; the stream.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    return side


def _replay_on_gpu(call: Callable[[], Outputs]) -> Callable[[], Outputs]:
    replay, outputs = record_on_gpu(call)

    def run() -> Outputs:
        replay()
        return tuple(output.clone() for output in outputs)

    return run


_RECORDERS: dict[str, Recorder] = {'cuda': _replay_on_gpu, 'cpu': native.record}


class ReplayedForward:
    """The forward pass of a module, by a graph where a shape comes again.

    The first pass at a shape runs as usual and builds the kernels. The second pass is recorded, and
    later passes are replayed. The outputs belong to the caller. A pass runs as usual where a graph
    cannot serve: with gradients, while torch.compile traces or a profiler watches, with a hook on a
    layer, inside another graph, on a CPU without the compiled kernels. If a recording fails, the
    log says why, and the module records no more. A graph holds what the module was when the graph
    was recorded: a layer that is exchanged later has no effect.

    Args:
        module: its class has the forward pass; the weights stay where they are.
        limit: the number of graphs that are kept. A new one replaces the one that was not used for
            the longest time. Each graph keeps the memory of the activations of its shape.
        record: records a call; None for the recorder of the device. Another one serves tests.
    """

    def __init__(self, module: nn.Module, limit: int, record: Recorder | None = None) -> None:
        self.module, self.limit, self.record = module, limit, record
        self._graphs: OrderedDict[tuple, Callable[[Tensor], tuple[Tensor, ...]]] = OrderedDict()
        self._seen: Counter[tuple] = Counter()               # passes without a graph
        self._hooks: list[dict] = []                         # of the layers, when last recorded
        self._lock = threading.Lock()                        # passes of a shape share one input

    def __deepcopy__(self, memo: dict) -> 'ReplayedForward':
        return type(self)(deepcopy(self.module, memo), self.limit, self.record)

    def __reduce__(self) -> tuple:
        return type(self), (self.module, self.limit, self.record)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to the outputs of the module."""
        if self.limit < 1 or not self._can_replay(x) or any(self._hooks):
            return self._plain(x)
        key = self._key(x)
        with self._lock:
            graph = self._graph(key, x)
            if graph is not None:
                return graph(x)
        return self._plain(x)

    def _can_replay(self, x: Tensor) -> bool:
        return _can_replay(x)

    def _key(self, x: Tensor) -> tuple:
        """What a graph is recorded for."""
        kind = x.device.type
        return (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(kind),
                torch.get_autocast_dtype(kind), torch.get_num_threads())

    def _graph(self, key: tuple, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]] | None:
        """The graph of a shape, recorded now if it is time; None for a pass as usual."""
        is_full = len(self._graphs) >= self.limit
        if key in self._graphs:
            if is_full and key == next(iter(self._graphs)):
                self._seen.clear()                           # no graph is idle
            self._graphs.move_to_end(key)
            return self._graphs[key]
        if self._seen[key] < (_OFTEN if is_full else 1):
            if len(self._seen) >= _SEEN:
                self._seen.clear()
            self._seen[key] += 1
            return None
        self._hooks = [*HOOKS_OF_ALL, *[
            hooks for part in self.module.modules() if part is not self.module
            for hooks in (part._forward_hooks, part._forward_pre_hooks)]]
        if any(self._hooks):
            return None
        if is_full:
            self._graphs.popitem(last=False)                 # before the new one needs memory
        try:
            self._graphs[key] = self._recorded(x)
        except RuntimeError as error:
            self.limit = 0
            logging.getLogger('visattn_dense').warning(
                'no graph of %s: %s', type(self.module).__name__, error)
            return None
        return self._graphs[key]

    def _plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return type(self.module).forward(self.module, x)

    def _recorded(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        record = self.record or _RECORDERS[x.device.type]
        # Outside inference_mode: its tensors could not be written to later.
        with torch.inference_mode(False), torch.no_grad(), autocast_without_cache(x):
            given = kept_copy(x)
            replay = record(lambda: self._plain(given))

        def run(x: Tensor) -> tuple[Tensor, ...]:
            given.copy_(x)
            return replay()

        return run


def kept_copy(x: Tensor) -> Tensor:
    """An input of a recording: a copy that stays at its address.

    In the same order in memory, but each number has a place: x may be expanded.
    """
    return torch.empty_like(x).copy_(x)


def autocast_without_cache(x: Tensor) -> torch.autocast:
    """The autocast that is on now for the device of `x`, or off, for a recording: a graph must not
    read a weight that autocast frees."""
    kind = x.device.type
    return torch.autocast(kind, dtype=torch.get_autocast_dtype(kind),
                          enabled=torch.is_autocast_enabled(kind), cache_enabled=False)


def _can_replay(x: Tensor) -> bool:
    if type(x) is not Tensor or native.is_watched():
        return False
    if x.is_cuda:
        return not torch.cuda.is_current_stream_capturing()
    return x.device.type == 'cpu' and native.available()
