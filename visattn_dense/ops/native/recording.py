"""Record the calls of a pass on the CPU, and make the same calls again without the Python around
them: what a CUDA graph is on a GPU.

A call is a kernel of this package or an operator of torch. Replaying makes the same calls, in the
same order, on tensors at the same addresses. So the pass must not depend on a value of a tensor.
"""
from __future__ import annotations

import ctypes
import functools
import struct
import weakref
from bisect import bisect_left, bisect_right, insort
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress, groupby
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from .build import Call, library

_EMPTY = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.empty_strided,
          torch.ops.aten.new_empty, torch.ops.aten.new_empty_strided}


def record(call: Callable[[], tuple[Tensor, ...]]) -> Callable[[], tuple[Tensor, ...]]:
    """Record the calls of a pass.

    Args:
        call: the pass. Its inputs stay at their addresses.

    Returns:
        A function that makes the calls again and gives the outputs, which belong to the caller.

    Raises:
        RuntimeError: the pass reads a value of a tensor, or needs a tensor without a plain memory.
    """
    recording = Recording()
    with recording:
        outputs = call()
    return _Replay(recording, outputs)


@dataclass(eq=False)
class _Life:
    """A tensor of a recording: its memory, and the calls [start, end) between which it lives."""
    address: int
    size: int
    start: int
    end: int | None = None

    def offset(self, address: int | None) -> int | None:
        """Where an address lies in the memory; None outside."""
        if address is None or not self.address <= address < self.address + self.size:
            return None
        return address - self.address


class Recording(TorchDispatchMode):
    """Notes the calls that are made in its context.

    New tensors lie in the memory of the recording. The memory of a tensor that is gone serves the
    next ones. In a replay this is as safe as it was before: the calls come in the same order.

    Attributes:
        calls: functions and their arguments, in order.
        touched: for each call of an operator, where the memory of its tensors starts; None for a
            kernel, whose arguments are addresses and numbers.
        memory: of the new tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple]] = []
        self.touched: list[set[int] | None] = []
        self.memory = _Memory()
        self._lives: dict[int, _Life] = {}                    # the last one at each address
        self._kept: list[Tensor] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False                                          # skipping would import the compiler

    def note(self, kernel: Callable, arguments: tuple) -> None:
        """Note the call of a kernel."""
        self.calls.append((kernel, arguments))
        self.touched.append(None)

    def keep(self, *arguments: Any) -> None:
        """Keep tensors whose addresses go to a kernel, and which lie elsewhere: weights, tables."""
        self._kept += [leaf for leaf in tree_leaves(arguments)
                       if isinstance(leaf, Tensor) and leaf not in self.memory]

    def life(self, x: Tensor) -> _Life | None:
        """The life of a tensor; None if it lies elsewhere."""
        return self._lives.get(_address(x))

    def __torch_dispatch__(self, operator: Any, types: Any, args: tuple = (),
                           kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        if operator.overloadpacket in _EMPTY:
            return self._new(out)
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
        ours = [self._new(result).copy_(result) if new else result
                for result, new in zip(results, is_new, strict=True)]
        # The call must not hold memory that later tensors may take.
        args, kwargs = tree_map_only(Tensor, self.memory.alias, (args, kwargs))
        targets = list(map(self.memory.alias, compress(ours, is_new)))
        writing = _writing(operator) if targets and all(is_new) else None
        call: Callable
        if operator.overloadpacket is torch.ops.aten.clone:
            call, args = targets[0].copy_, args[:1]
        elif writing is not None:
            form, names = writing
            call = functools.partial(
                form, **kwargs, **dict(zip(names, targets, strict=True)))
        elif len(results) == len(targets) == 1:
            call = _Fresh(functools.partial(operator, **kwargs), targets[0], self.life(ours[0]))
        else:
            call = functools.partial(_copy, functools.partial(operator, **kwargs), targets, is_new)
        self.calls.append((call, args))
        self.touched.append(given.union(map(_address, ours)))
        ours = iter(ours)
        return tree_map_only(Tensor, lambda _: next(ours), out)

    def _new(self, like: Tensor) -> Tensor:
        """A tensor in the memory of the recording, whose life starts with the next call."""
        new = self.memory.like(like)
        if address := _address(new):
            now = len(self.calls)
            if address in self._lives:
                self._lives[address].end = now
            self._lives[address] = _Life(address, new.untyped_storage().nbytes(), now)
        return new


class _Kernels:
    """The kernels of a recording, as a loop of the library calls them (replay.cpp).

    Attributes:
        bits: the arguments of each kernel, by the place of its call in the recording.
    """

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.bits = {i: (ctypes.c_uint64 * len(arguments))(*map(_bits, kernel.argtypes, arguments))
                     for i, (kernel, arguments) in enumerate(recording.calls)
                     if recording.touched[i] is None}

    def calls(self) -> list[tuple[Callable, tuple]]:
        """The calls of the recording; kernels that follow each other are one call."""
        replay = library().visattn_replay
        calls: list[tuple[Callable, tuple]] = []
        for are_kernels, group in groupby(range(len(self.recording.calls)), self.bits.__contains__):
            if not are_kernels:
                calls += (self.recording.calls[i] for i in group)
                continue
            many = [Call(_address_of(f'{self.recording.calls[i][0].__name__}_again'),
                         ctypes.addressof(self.bits[i])) for i in group]
            calls.append((replay, ((Call * len(many))(*many), len(many))))
        return calls


@functools.cache
def _address_of(function: str) -> int | None:
    """Where a function of the library lies."""
    return ctypes.cast(getattr(library(), function), ctypes.c_void_p).value


def _bits(kind: Any, argument: Any) -> int:
    """An argument of a kernel as 64 bits."""
    if kind is ctypes.c_float:
        return struct.unpack('I', struct.pack('f', argument))[0]
    if argument is None or isinstance(argument, int):
        return int(argument or 0)
    return ctypes.addressof(getattr(argument, '_obj', argument))


class _Moves:
    """Where the calls of a recording name the memory of a tensor, so that the tensor can move.

    Attributes:
        are_known: whether these are all places. An operator of torch holds tensors, not addresses.
    """

    def __init__(self, kernels: _Kernels, life: _Life, *, made_by_operator: bool) -> None:
        recording = kernels.recording
        self.arguments: list[tuple[ctypes.Array, int, int]] = []      # of a kernel, place, offset
        self.fields: list[tuple[ctypes.Structure, str, int]] = []
        self.are_known = True
        for i in range(life.start + made_by_operator, life.end or len(recording.calls)):
            touched = recording.touched[i]
            if touched is not None:
                self.are_known &= life.address not in touched
                continue
            for j, argument in enumerate(recording.calls[i][1]):
                if isinstance(argument, int):
                    if (offset := life.offset(argument)) is not None:
                        self.arguments.append((kernels.bits[i], j, offset))
                    continue
                for structure in _structures(argument):
                    for name, kind in structure._fields_:
                        if kind is not ctypes.c_void_p:
                            continue
                        if (offset := life.offset(getattr(structure, name))) is not None:
                            self.fields.append((structure, name, offset))

    def to(self, address: int) -> None:
        """Name another memory in its place."""
        for bits, j, offset in self.arguments:
            bits[j] = address + offset
        for structure, name, offset in self.fields:
            setattr(structure, name, address + offset)


def _structures(argument: Any) -> list[ctypes.Structure]:
    """The structures that an argument of a kernel points to."""
    if isinstance(argument, ctypes.Array):
        return list(argument)
    return [argument._obj] if hasattr(argument, '_obj') else []


class _Fresh:
    """The call of an operator that makes a new tensor each time.

    Without `moves`, the tensor is copied to the one of the recording.
    """

    def __init__(self, operator: Callable[..., Tensor], target: Tensor, life: _Life | None) -> None:
        self.operator, self.target, self.life = operator, target, life
        self.moves: _Moves | None = None
        self.result: Tensor | None = None

    def __call__(self, *args: Any) -> None:
        self.result = None
        result, target = self.operator(*args), self.target
        if self.moves is None or (result.stride(), result.storage_offset()) != (
                target.stride(), target.storage_offset()):
            result = target.copy_(result)
        if self.moves is not None:
            self.result = result                              # lives until the next replay
            self.moves.to(_address(result))


def _copy(operator: Callable, targets: list[Tensor], is_new: list[bool], *args: Any) -> None:
    """Call an operator of several results, and copy those that are new."""
    for target, result in zip(targets, compress(_results(operator(*args)), is_new), strict=True):
        target.copy_(result)


class _Replay:
    """Makes the calls of a recording again.

    The outputs get memory of their own, where all calls that name them are known; else copies.
    """

    def __init__(self, recording: Recording, outputs: tuple[Tensor, ...]) -> None:
        self.recording, self.outputs = recording, outputs     # these keep the memory
        self.lives = [recording.life(output) for output in outputs]
        self.kernels = kernels = _Kernels(recording)          # keeps the arguments
        self.moves = {}
        for life in filter(None, self.lives):
            moves = _Moves(kernels, life, made_by_operator=False)
            if moves.are_known:
                self.moves[life.address] = life.size, moves
        for call, _ in recording.calls:
            if isinstance(call, _Fresh) and call.life is not None and call.life not in self.lives:
                moves = _Moves(kernels, call.life, made_by_operator=True)
                call.moves = moves if moves.are_known else None
        self.calls = kernels.calls()

    def __call__(self) -> tuple[Tensor, ...]:
        memory = {}
        for address, (size, moves) in self.moves.items():
            memory[address] = _bytes(size)
            moves.to(memory[address].data_ptr())
        for function, arguments in self.calls:
            function(*arguments)
        return tuple(
            memory[life.address].view(output.dtype).as_strided(
                output.size(), output.stride(), output.storage_offset())
            if life is not None and life.address in memory else output.clone()
            for output, life in zip(self.outputs, self.lives, strict=True))


def _bytes(size: int) -> Tensor:
    """Memory, whatever torch's default device is."""
    return torch.empty(size, dtype=torch.uint8, device='cpu')


def _results(out: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(out) if leaf is not None]


@functools.cache
def _writing(operator: Any) -> tuple[Any, list[str]] | None:
    """The form of an operator that writes to given tensors, and their names; None without one.

    A form without a kernel for CPUs is one that torch made, which computes new tensors and copies
    them.
    """
    packet, schema = operator.overloadpacket, operator._schema
    wanted = [(argument.name, str(argument.type)) for argument in schema.arguments]
    for name in packet.overloads():
        form = getattr(packet, name)
        arguments = form._schema.arguments
        outs = [argument.name for argument in arguments if argument.is_out]
        if len(outs) == len(schema.returns) and wanted == [
                (argument.name, str(argument.type)) for argument in arguments
                if not argument.is_out] and form.has_kernel_for_dispatch_key(
                    torch._C.DispatchKey.CPU):
            return form, outs
    return None


class _Memory:
    """Blocks of memory that tensors take and give back."""

    def __init__(self) -> None:
        self._blocks: dict[int, Tensor] = {}                  # by address
        self._free: list[Tensor] = []                         # from small to large
        # A tensor may go at any time, also while the list above is searched.
        self._returned: deque[Tensor] = deque()

    def __contains__(self, x: Tensor) -> bool:
        return _address(x) in self._blocks

    def like(self, x: Tensor) -> Tensor:
        """A tensor of the same geometry and dtype, not filled."""
        size = x.untyped_storage().nbytes()
        if not size:
            return x
        while self._returned:
            insort(self._free, self._returned.popleft(), key=len)
        # Of the smallest that fit, the one that was given back last: the caches may hold it.
        fits = bisect_left(self._free, size, key=len)
        if fits < len(self._free):
            block = self._free.pop(bisect_right(self._free, len(self._free[fits]), key=len) - 1)
        else:
            block = _bytes(size)
            self._blocks[block.data_ptr()] = block
        lent = (ctypes.c_char * size).from_address(block.data_ptr())
        weakref.finalize(lent, self._returned.append, block).atexit = False
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
