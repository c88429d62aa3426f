"""Record the calls of a pass on the CPU, and make the same calls again without the Python around
them: what a CUDA graph is on a GPU.

A call is a kernel of this package or an operator of torch. Replaying makes the same calls, in the
same order, on tensors at the same addresses. So the pass must not depend on a value of a tensor.
"""
import ctypes
import functools
import weakref
from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable
from itertools import compress
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

_EMPTY = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided,
          torch.ops.aten.new_empty, torch.ops.aten.new_empty_strided}


def record(call: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """Record the calls of a pass.

    Args:
        call: the pass. Its inputs stay at their addresses.

    Returns:
        A function that makes the calls again; and the outputs, which each replay overwrites.

    Raises:
        RuntimeError: the pass reads a value of a tensor, or needs a tensor without a plain memory.
    """
    recording = Recording()
    with recording:
        outputs = call()
    calls = recording.calls

    def replay() -> None:
        for function, arguments in calls:
            function(*arguments)

    # The memory lives as long as its replay.
    replay.recording = recording
    return replay, outputs


class Recording(TorchDispatchMode):
    """Notes the calls that are made in its context.

    New tensors lie in the memory of the recording. The memory of a tensor that is gone serves the
    next ones. In a replay this is as safe as it was before: the calls come in the same order.

    Attributes:
        calls: functions and their arguments, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple]] = []
        self._memory = _Memory()
        self._kept: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                                          # skipping would import the compiler

    def note(self, kernel: Callable, arguments: tuple) -> None:
        """Note the call of a kernel, whose arguments are addresses and numbers."""
        self.calls.append((kernel, arguments))

    def keep(self, *arguments: Any) -> None:
        """Keep tensors whose addresses go to a kernel, and which lie elsewhere: weights, tables."""
        self._kept += [leaf for leaf in tree_leaves(arguments)
                       if isinstance(leaf, Tensor) and leaf not in self._memory]

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        if operator.overloadpacket in _EMPTY:
            return self._memory.like(out)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        results = _results(out)
        if not tensors and not any(isinstance(result, Tensor) for result in results):
            return out                                        # about dtypes, for example
        for result in results:
            if not _is_plain(result):
                raise RuntimeError(f'{operator} gives {type(result).__name__}, which a recording '
                                   'cannot make again')
        given = {0, *map(_address, tensors)}
        is_new = [_address(result) not in given for result in results]
        if not (any(is_new) or operator._schema.is_mutable):
            return out                                        # a view
        ours = [self._memory.like(result).copy_(result) if new else result
                for result, new in zip(results, is_new, strict=True)]
        # The call must not hold memory that later tensors may take.
        args, kwargs = tree_map_only(Tensor, self._memory.alias, (args, kwargs))
        self.calls.append(_again(operator, args, kwargs, list(compress(
            map(self._memory.alias, ours), is_new)), is_new))
        ours = iter(ours)
        return tree_map_only(Tensor, lambda _: next(ours), out)


def _again(operator: Any, args: tuple, kwargs: dict, outputs: list[Tensor],
           is_new: list[bool]) -> tuple[Callable, tuple]:
    """The call of an operator that writes its new tensors to `outputs`."""
    writes = _writing(operator) if outputs and all(is_new) else None
    if writes is not None:
        form, names = writes
        kwargs = {**kwargs, **dict(zip(names, outputs, strict=True))}
        return functools.partial(form, **kwargs), args

    def call(*args: Any) -> None:
        results = compress(_results(operator(*args, **kwargs)), is_new)
        for output, result in zip(outputs, results, strict=True):
            output.copy_(result)

    return call, args


def _results(out: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(out) if leaf is not None]


@functools.cache
def _writing(operator: Any) -> tuple[Any, list[str]] | None:
    """The form of an operator that writes to given tensors, and their names; None without one."""
    packet, schema = operator.overloadpacket, operator._schema
    wanted = [(argument.name, str(argument.type)) for argument in schema.arguments]
    for name in packet.overloads():
        form = getattr(packet, name)
        arguments = form._schema.arguments
        outs = [argument.name for argument in arguments if argument.is_out]
        if len(outs) == len(schema.returns) and wanted == [
                (argument.name, str(argument.type)) for argument in arguments
                if not argument.is_out]:
            return form, outs
    return None


class _Memory:
    """Blocks of memory that tensors take and give back."""

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}                  # by address
        self._free: list[Tensor] = []                         # from small to large

    def __contains__(self, x: Tensor) -> bool:
        return _address(x) in self._blocks

    def like(self, x: Tensor) -> Tensor:
        """A tensor of the same geometry and dtype, not filled."""
        size = x.untyped_storage().nbytes()
        if not size:
            return x
        # Of the smallest that fit, the one that was given back last: the caches may hold it.
        fits = bisect_left(self._free, size, key=len)
        if fits < len(self._free):
            block = self._free.pop(bisect_right(self._free, len(self._free[fits]), key=len) - 1)
        else:
            block = torch.empty(size, dtype=torch.uint8)
            self._blocks[block.data_ptr()] = block
        lent = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(lent, insort, self._free, block, key=len).atexit = False
        return _tensor(lent, x)

    def alias(self, x: Tensor) -> Tensor:
        """The same tensor, without a share in its memory. A tensor that lies elsewhere as it is."""
        if x not in self:
            return x
        size = x.untyped_storage().nbytes()
        return _tensor((ctypes.c_char * size).from_address(_address(x)), x)


def _tensor(memory: ctypes.Array, like: Tensor) -> Tensor:
    return torch.frombuffer(memory, dtype=like.dtype).as_strided(
        like.size(), like.stride(), like.storage_offset())


def _is_plain(x: Any) -> bool:
    return isinstance(x, Tensor) and x.device.type == 'cpu' and x.layout == torch.strided


def _address(x: Tensor) -> int:
    """Where the memory of a tensor starts; 0 if it has none that others could share."""
    return x.untyped_storage().data_ptr() if _is_plain(x) else 0
