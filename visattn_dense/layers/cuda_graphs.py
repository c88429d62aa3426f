"""Replay the launches of a module as a CUDA graph, one graph for each shape of the input.

A CUDA graph starts all kernels of a pass with one launch: small images no longer wait for the CPU.
"""
import logging
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

Recorder = Callable[[Callable[[], Any]], tuple[Callable[[], None], Any]]

_SEEN = 256
"""The number of shapes that are remembered until they come a second time."""


class Replayable:
    """A second base class, beside nn.Module, of a module that maps one tensor to a tuple of tensors
    and never waits for the GPU."""


def record(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record the kernels of a call.

    Args:
        call: runs on the current stream of a CUDA device. Its inputs stay at their addresses.

    Returns:
        A function that runs the kernels again; and the outputs, which each replay overwrites.
    """
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = call()
    return graph.replay, outputs


class ReplayedForward:
    """The forward pass of a module, by a CUDA graph where a shape comes again.

    The first pass at a shape runs as usual and builds the kernels. The second pass is recorded, and
    later passes are replayed. The outputs are copies, and belong to the caller. A pass runs as
    usual where a graph cannot serve: on a CPU, with gradients, while torch.compile traces, or
    inside another graph. If a recording fails, the log says why, and the module records no more.
    One thread at a time may call the module: all calls of a shape share one input.

    Args:
        module: its class has the forward pass; the weights stay where they are.
        limit: the number of graphs that are kept. A new one replaces the one that was not used for
            the longest time. Each graph keeps the memory of the activations of its shape.
        record: records a call; another one serves tests.
    """

    def __init__(self, module: nn.Module, limit: int, record: Recorder = record) -> None:
        self.module, self.limit, self.record = module, limit, record
        self._graphs: OrderedDict[tuple, Callable[[Tensor], tuple[Tensor, ...]]] = OrderedDict()
        self._seen: OrderedDict[tuple, None] = OrderedDict()

    def __deepcopy__(self, memo: dict) -> 'ReplayedForward':
        return type(self)(deepcopy(self.module, memo), self.limit, self.record)

    def __reduce__(self) -> tuple:
        return type(self), (self.module, self.limit, self.record)

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to the outputs of the module."""
        if self.limit < 1 or not _can_replay(x):
            return self._plain(x)
        kind = x.device.type
        key = (x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(kind),
               torch.get_autocast_dtype(kind))
        if key not in self._graphs:
            if key not in self._seen:
                self._seen[key] = None
                if len(self._seen) > _SEEN:
                    self._seen.popitem(last=False)
                return self._plain(x)
            while len(self._graphs) >= self.limit:
                self._graphs.popitem(last=False)          # before the new one needs memory
            try:
                self._graphs[key] = self._recorded(x)
            except RuntimeError as error:
                self.limit = 0
                logging.getLogger('visattn_dense').warning(
                    'no CUDA graph of %s: %s', type(self.module).__name__, error)
                return self._plain(x)
        self._graphs.move_to_end(key)
        return self._graphs[key](x)

    def _plain(self, x: Tensor) -> tuple[Tensor, ...]:
        return type(self.module).forward(self.module, x)

    def _recorded(self, x: Tensor) -> Callable[[Tensor], tuple[Tensor, ...]]:
        kind = x.device.type
        # Outside inference_mode: its tensors could not be written to later. Without the cache of
        # autocast: a graph must not read a weight that autocast frees.
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(
                kind, dtype=torch.get_autocast_dtype(kind),
                enabled=torch.is_autocast_enabled(kind), cache_enabled=False):
            given = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
            given.copy_(x)
            replay, outputs = self.record(lambda: self._plain(given))

        def run(x: Tensor) -> tuple[Tensor, ...]:
            given.copy_(x)
            replay()
            return tuple(output.clone() for output in outputs)

        return run


def _can_replay(x: Tensor) -> bool:
    return (type(x) is Tensor and x.is_cuda and not torch.is_grad_enabled()
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing()
            and not torch.cuda.is_current_stream_capturing())
