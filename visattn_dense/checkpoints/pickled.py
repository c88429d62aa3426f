"""Read a pickle as data: plain values and tensors. Nothing is imported or called for the file.

A pickle is a small program. Python's own reader runs that program: it imports what the file names
and calls it. This reader carries out the instructions on plain values alone. A name in the file has
to be a key of the tables below. The table's entry checks the size and then builds one kind of
value. Any other name ends the reading.

The instructions come from Python's `pickletools`, which lists and decodes them.
"""
import math
import pickletools
import re
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from visattn_dense.errors import UserError

# Bytes of memory that values of a file may take beside its tensors, and a few of the prices.
_BUDGET = 128 << 20
_PRICE_OF_VALUE, _PRICE_OF_CONTAINER, _PRICE_OF_COPY = 48, 240, 100
# The same for long text, bytes and arrays, beside twice the file.
_LONG, _LONG_BUDGET = 1 << 10, 16 << 20
_DEPTH = 64
# Values, where those that several containers share count for each: what a walk comes across.
_MOST_VALUES = 1 << 22
_LONGEST_NAME, _LONGEST_LINE, _LONGEST_PATH = 512, 5000, 4096

DTYPES = {name: getattr(torch, name) for name in (
    'float64', 'float32', 'float16', 'bfloat16', 'int64', 'int32', 'int16', 'int8', 'uint8', 'bool',
    'complex64', 'complex128')}
_STORAGES = {'DoubleStorage': 'float64', 'FloatStorage': 'float32', 'HalfStorage': 'float16',
             'BFloat16Storage': 'bfloat16', 'LongStorage': 'int64', 'IntStorage': 'int32',
             'ShortStorage': 'int16', 'CharStorage': 'int8', 'ByteStorage': 'uint8',
             'BoolStorage': 'bool', 'ComplexFloatStorage': 'complex64',
             'ComplexDoubleStorage': 'complex128', 'UntypedStorage': 'uint8'}
_NUMPY = {code: np.dtype(code) for code in ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8',
                                            'f2', 'f4', 'f8')}


class Refused(Exception):
    """The file needs something that no file of weights needs. The message says what."""


class NotHeld(Refused):
    """The file has tensors of a kind that no model here holds. The message names the kind."""


class TooLarge(Refused):
    """The file claims too much memory. The message says for what."""


class Attributes(dict):
    """The attributes of an object whose class is not built.

    Attributes:
        kind: the class, as the file names it: 'argparse.Namespace'.
    """

    kind: str = ''

    def __reduce__(self) -> tuple:
        # A file that is saved again holds no class of this project.
        return OrderedDict, (list(self.items()),)


class Storage:
    """The bytes that tensors of a file share.

    Args:
        dtype: the dtype of the numbers, as the file says.
        size: number of bytes.
        bytes_: the bytes; None until they are read, if they come later in the file.
    """

    def __init__(self, dtype: torch.dtype, size: int,
                 bytes_: torch.UntypedStorage | None = None) -> None:
        self.dtype, self.size, self.bytes = dtype, size, bytes_


class _Name(str):
    """A name in the file: 'module.name'."""


class _Pending:
    """A value whose contents come in a later instruction (BUILD)."""

    value: Any = None

    def set_state(self, state: Any) -> None:
        raise Refused(f'a {type(self).__name__.lstrip("_").lower()} with a state of its own')


class _DType(_Pending):
    def __init__(self, code: Any) -> None:
        if code not in _NUMPY:
            raise Refused(f'a numpy array of dtype {code!r}; numbers are '
                          f'{", ".join(_NUMPY)}')
        self.value = _NUMPY[code]

    def set_state(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ('<', '>', '|', '='):
            raise Refused('a numpy dtype of its own making')
        self.value = self.value.newbyteorder(order)


class _Encoded:
    """Bytes as protocol 2 writes them: by text with one character for each."""

    def __init__(self, text: str) -> None:
        self.text = text

    def build(self) -> bytes:
        return self.text.encode('latin1')


class _Array(_Pending):
    def set_state(self, state: Any) -> None:
        _, shape, dtype, is_fortran, raw = state
        self.value = _numpy_array(raw, dtype, shape, 'F' if is_fortran else 'C')


class _Tensor:
    """A tensor that is made later, when the bytes of its storage have been read."""

    def __init__(self, storage: Storage, dtype: torch.dtype, offset: int, size: tuple,
                 stride: tuple) -> None:
        self.storage, self.dtype, self.offset = storage, dtype, offset
        self.size, self.stride = size, stride

    @property
    def nbytes(self) -> int:
        return math.prod(self.size) * self.dtype.itemsize

    def build(self) -> Tensor:
        empty = torch.empty(0, dtype=self.dtype)
        return empty.set_(self.storage.bytes, self.offset, self.size, self.stride)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


def _numpy_array(raw: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    raw = raw.build() if isinstance(raw, _Encoded) else raw
    if not (isinstance(dtype, _DType) and isinstance(raw, bytes) and isinstance(shape, tuple)
            and len(shape) <= 16 and all(map(_is_count, shape))
            and math.prod(shape) * dtype.value.itemsize == len(raw)):
        raise Refused('a numpy array whose bytes are not those of its shape and dtype')
    return np.frombuffer(raw, dtype.value).reshape(shape, order=order).copy()


def _numpy_scalar(dtype: Any, raw: Any = b'') -> Any:
    return _numpy_array(raw, dtype, (), 'C').item()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, requires_grad: Any = False,
            hooks: Any = None, dtype: Any = None, *_: Any) -> _Tensor:
    # The seventh argument is the dtype in one of torch's two functions, else metadata.
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
            and len(size) == len(stride) <= 16
            and all(map(_is_count, (offset, *size, *stride)))):
        raise Refused('a tensor without storage, shape and strides')
    dtype = dtype if isinstance(dtype, torch.dtype) else storage.dtype
    last = sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) and (offset + last + 1) * dtype.itemsize > storage.size:
        raise Refused(f'a tensor of {size} that lies outside its storage of {storage.size:,} bytes')
    return _Tensor(storage, dtype, offset if math.prod(size) else 0, size, stride)


def _tensor_of_type(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if function not in ('torch._utils._rebuild_tensor_v2', 'torch._utils._rebuild_parameter'):
        raise Refused(f'a tensor made by {function}')
    return _CALLS[function](*arguments)


def _encoded(text: Any, encoding: Any = 'latin1') -> _Encoded:
    if not isinstance(text, str) or encoding not in ('latin1', 'latin-1'):
        raise Refused('bytes in an encoding other than latin1')
    return _Encoded(text)


def _pairs(kind: type) -> Callable[..., dict]:
    def build(*arguments: Any) -> dict:
        # The argument of a defaultdict, which makes its values, is not used here.
        given = arguments[0] if arguments else ()
        out = kind()
        for key, value in (given.items() if isinstance(given, dict) else
                           given if isinstance(given, (list, tuple)) else ()):
            out[_key(key)] = value
        return out
    return build


def _path(*parts: Any) -> str:
    if not all(isinstance(part, str) for part in parts) or sum(map(len, parts)) > _LONGEST_PATH:
        raise Refused('a path of something else than short text')
    return '/'.join(parts).replace('//', '/')


def _size(values: Any) -> torch.Size:
    if not (isinstance(values, (tuple, list)) and all(map(_is_count, values))):
        raise Refused('a torch.Size of something else than counts')
    return torch.Size(values)


def _list(values: Any = (), *_: Any) -> list:
    if not isinstance(values, (list, tuple)):
        raise Refused('a collection of something else than a list')
    return list(values)


def _counter(values: Any = ()) -> Counter:
    if not (isinstance(values, dict) and all(type(count) is int for count in values.values())):
        raise Refused('a Counter of something else than whole numbers')
    return Counter(values)


def _device(kind: Any, number: Any = None) -> str:
    if not isinstance(kind, str) or not (number is None or _is_count(number)):
        raise Refused('a device of something else than a name and a number')
    return kind if number is None else f'{kind}:{number}'


def _no_bytes() -> bytes:
    return b''


def _method(owner: Any, name: Any) -> None:
    # mmengine's history of a logged scalar and its one-cycle scheduler contain names of their
    # methods. These names are not looked up.
    if owner not in (*_OBJECTS, _ONE_CYCLE) or not isinstance(name, str) or name.startswith('__'):
        raise Refused(f'the attribute {ascii(name)[:60]} of {owner}')


def _reconstructed(kind: Any, base: Any = None, state: Any = None) -> Attributes:
    return _attributes(kind)


_CALLS: dict[str, Callable[..., Any]] = {
    'collections.OrderedDict': _pairs(OrderedDict),
    'collections.defaultdict': _pairs(dict),
    'collections.Counter': _counter,
    'collections.deque': _list,
    'builtins.set': _list, '__builtin__.set': _list,
    'builtins.frozenset': _list, '__builtin__.frozenset': _list,
    'builtins.getattr': _method, '__builtin__.getattr': _method,
    'copyreg._reconstructor': _reconstructed, 'copy_reg._reconstructor': _reconstructed,
    '_codecs.encode': _encoded,
    'builtins.bytes': _no_bytes, '__builtin__.bytes': _no_bytes,
    'pathlib.PosixPath': _path, 'pathlib.PurePosixPath': _path, 'pathlib.WindowsPath': _path,
    'pathlib._local.PosixPath': _path,
    'torch._utils._rebuild_tensor': _tensor,
    'torch._utils._rebuild_tensor_v2': _tensor,
    'torch._utils._rebuild_tensor_v3': _tensor,
    'torch._utils._rebuild_parameter': lambda tensor, *_: tensor,
    'torch._utils._rebuild_parameter_with_state': lambda tensor, *_: tensor,
    'torch._tensor._rebuild_from_type_v2': _tensor_of_type,
    'torch.Size': _size,
    'torch.device': _device,
    'numpy.dtype': lambda code, *_: _DType(code),
    **{f'{module}.multiarray.{name}': function for module in ('numpy.core', 'numpy._core')
       for name, function in (('_reconstruct', lambda *_: _Array()), ('scalar', _numpy_scalar))},
    **{f'{module}.numeric._frombuffer': _numpy_array for module in ('numpy.core', 'numpy._core')},
}
"""Name in the file -> the function that builds a value from arguments."""

_OBJECTS = ('argparse.Namespace', 'yacs.config.CfgNode',
            'mmengine.logging.history_buffer.HistoryBuffer')
"""Classes whose objects become `Attributes`."""

_ONE_CYCLE = 'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler'

_INERT = (_ONE_CYCLE, *(f'{module}.{name}' for module in ('builtins', '__builtin__')
            for name in ('list', 'dict', 'int', 'float', 'str', 'object')),
          'numpy.ndarray', 'torch.nn.parameter.Parameter', 'torch.Tensor', 'torch._tensor.Tensor',
          'torch.nn.parameter.Buffer')
"""Names that only occur as arguments of the functions above."""


_NOT_HELD = {'_rebuild_qtensor': 'quantised tensors', '_rebuild_sparse': 'sparse tensors',
             '_rebuild_meta_tensor': 'tensors without numbers, on the meta device',
             '_rebuild_nested_tensor': 'nested tensors', 'QInt': 'quantised tensors',
             'QUInt': 'quantised tensors'}


def _attributes(kind: Any) -> Attributes:
    if kind not in _OBJECTS:
        raise Refused(f'an object of {kind}')
    out = Attributes()
    out.kind = str(kind)
    return out


def _named(name: str) -> Any:
    """The value for a global name in the file."""
    module, _, leaf = name.rpartition('.')
    if module == 'torch' and leaf in DTYPES:
        return DTYPES[leaf]
    unheld = next((what for part, what in _NOT_HELD.items() if part in leaf), None)
    if unheld or module == 'torch' and isinstance(getattr(torch, leaf, None), torch.dtype):
        raise NotHeld(unheld or f'{leaf} tensors')
    storage = leaf in _STORAGES and module in ('torch', 'torch.storage', 'torch.cuda')
    if not (storage or name in _CALLS or name in _OBJECTS or name in _INERT):
        raise Refused(f'{_printable(name)}')
    return _Name(name)


def storage_dtype(kind: Any) -> torch.dtype:
    """The dtype of a storage class, found by the class's name in the file."""
    leaf = kind.rpartition('.')[2] if isinstance(kind, _Name) else None
    if leaf not in _STORAGES:
        raise Refused(f'a storage of {kind}')
    return DTYPES[_STORAGES[leaf]]


def _printable(text: str) -> str:
    return text if text.isprintable() and len(text) <= _LONGEST_NAME else ascii(text)[:100]


def _key(value: Any) -> Any:
    if type(value) is str:
        return value
    if value is None or type(value) is bool or type(value) is int and abs(value) < 1 << 32:
        return value
    raise Refused(f'a dict with a key that is a {type(value).__name__.lstrip("_")}')


_CONSTANTS = {'NONE': None, 'NEWTRUE': True, 'NEWFALSE': False}
_VALUES = frozenset((
    'INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT', 'STRING',
    'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'BINUNICODE', 'SHORT_BINUNICODE', 'BINUNICODE8',
    'BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'))
_EMPTY = {'EMPTY_LIST': list, 'EMPTY_TUPLE': tuple, 'EMPTY_DICT': dict, 'EMPTY_SET': list}
_TUPLES = {'TUPLE1': 1, 'TUPLE2': 2, 'TUPLE3': 3}


# A first byte of UTF-8 for a character that is not in Latin-1.
_WIDE = re.compile(rb'[\xc4-\xff]')


class _Source:
    """The bytes of a pickle: none beyond its size, no long line, no text without room for it."""

    def __init__(self, file: BinaryIO, size: int, take: Callable[[int], None]) -> None:
        self._file, self._left, self._take = file, size, take

    def read(self, count: int) -> bytes:
        if not 0 <= count <= self._left:
            raise ValueError('it ends inside a value')
        self._left -= count
        out = self._file.read(count)
        if count > _LONG:
            # One wide character makes every character of a text take four bytes.
            self._take(count * (4 if _WIDE.search(out) else 1))
        return out

    def readline(self) -> bytes:
        out = self._file.readline(min(self._left, _LONGEST_LINE))
        self._left -= len(out)
        return out


class PickleReader:
    """Carries out the instructions of pickles on plain values.

    Args:
        size: bytes that pickles have. Long values take at most twice as much memory.
        persistent: a function from a persistent id, torch's tuple for a storage, to the `Storage`.
        limit: bytes that all tensors together may claim.
    """

    def __init__(self, size: int, persistent: Callable[[Any], Storage] | None = None,
                 limit: int = 1 << 62) -> None:
        self._size = size
        self._persistent = persistent
        self._budget = _BUDGET
        self._long_budget = _LONG_BUDGET + 2 * size
        self._claims = limit

    def _take(self, count: int) -> None:
        self._budget -= count
        if self._budget < 0:
            raise TooLarge(f'beside its tensors it has more values than fit into {_BUDGET >> 20} '
                           'MB')

    def _take_long(self, count: int) -> None:
        self._long_budget -= count
        if self._long_budget < 0:
            raise TooLarge('beside its tensors it has text and arrays that take more than twice '
                           'its size')

    def read(self, file: BinaryIO) -> Any:
        """The value of the pickle at the file's position. Afterwards the position is at its end.

        Tensors are not made yet: `finish` makes the tensors.

        Raises:
            Refused: the pickle asks for more than plain values and tensors.
            ValueError and others: the pickle is damaged.
        """
        stack: list[Any] = []
        marks: list[int] = []
        memo: dict[int, Any] = {}

        def since_mark() -> list[Any]:
            start = marks.pop()
            values = stack[start:]
            del stack[start:]
            return values

        for opcode, argument, _ in pickletools.genops(_Source(file, self._size, self._take_long)):
            name = opcode.name
            self._take(_PRICE_OF_VALUE)
            if name in _VALUES:
                if type(argument) is int and argument.bit_length() > 128:
                    raise Refused(f'a whole number of {argument.bit_length()} bits')
                stack.append(bytes(argument) if name == 'BYTEARRAY8' else argument)
            elif name in ('BINPUT', 'LONG_BINPUT', 'PUT'):
                memo[argument] = stack[-1]
            elif name == 'MEMOIZE':
                memo[len(memo)] = stack[-1]
            elif name in ('BINGET', 'LONG_BINGET', 'GET'):
                stack.append(memo[argument])
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name in _EMPTY:
                self._take(_PRICE_OF_CONTAINER)
                stack.append(_EMPTY[name]())
            elif name == 'MARK':
                marks.append(len(stack))
            elif name in _TUPLES:
                count = _TUPLES[name]
                if len(stack) < count:
                    raise ValueError('an instruction takes more values than there are')
                stack[-count:] = [tuple(stack[-count:])]
            elif name == 'TUPLE':
                stack.append(tuple(since_mark()))
            elif name in ('LIST', 'FROZENSET'):
                stack.append(since_mark())
            elif name == 'DICT':
                stack.append(_fill({}, since_mark()))
            elif name in ('APPENDS', 'ADDITEMS'):
                values = since_mark()
                _extend(stack[-1], values)
            elif name == 'APPEND':
                value = stack.pop()
                _extend(stack[-1], [value])
            elif name == 'SETITEMS':
                values = since_mark()
                _fill(stack[-1], values)
            elif name == 'SETITEM':
                value, key = stack.pop(), stack.pop()
                _fill(stack[-1], [key, value])
            elif name == 'GLOBAL':
                stack.append(_named(argument.replace(' ', '.')))
            elif name == 'STACK_GLOBAL':
                leaf, module = stack.pop(), stack.pop()
                stack.append(_named(f'{module}.{leaf}'))
            elif name in ('REDUCE', 'NEWOBJ'):
                arguments, kind = stack.pop(), stack.pop()
                stack.append(self._make(kind, arguments))
            elif name == 'BUILD':
                state = stack.pop()
                _set_state(stack[-1], state)
                if isinstance(stack[-1], _Array):
                    self._take_long(stack[-1].value.nbytes)
            elif name == 'BINPERSID':
                if self._persistent is None:
                    raise Refused('a tensor where none belongs')
                stack.append(self._persistent(stack.pop()))
            elif name == 'POP':
                stack.pop()
            elif name == 'POP_MARK':
                since_mark()
            elif name == 'DUP':
                stack.append(stack[-1])
            elif name == 'STOP':
                if len(stack) != 1:
                    raise ValueError(f'{len(stack)} values are left at its end')
                return stack[0]
            elif name not in ('PROTO', 'FRAME'):
                raise Refused(f'the pickle instruction {name}')
        raise ValueError('it has no end')

    def _make(self, kind: Any, arguments: Any) -> Any:
        self._take(_PRICE_OF_CONTAINER)
        if isinstance(kind, _Name) and kind in _OBJECTS:
            return _attributes(kind)
        if not (isinstance(kind, _Name) and kind in _CALLS and isinstance(arguments, tuple)):
            raise Refused(f'an object made by {kind}')
        value = _CALLS[kind](*arguments)
        if isinstance(value, (dict, list)):
            self._take(_PRICE_OF_COPY * len(value))
        elif isinstance(value, np.ndarray):
            self._take_long(value.nbytes)
        if isinstance(value, _Tensor):
            self._claims -= value.nbytes
            if self._claims < 0:
                raise TooLarge(f'a tensor of {value.size} claims {value.nbytes:,} bytes, and the '
                               f'file has {value.storage.size:,} for it')
        return value

    def finish(self, contents: Any) -> Any:
        """The contents with their tensors and arrays made.

        Raises:
            Refused: the contents contain themselves, are nested too deeply, or hold a value other
                than plain containers, numbers, text and tensors.
        """
        done: dict[int, Any] = {}
        # What is replaced has to stay, or another value would get its identity.
        kept: list[Any] = []
        # Values so far, those of a shared container once for each place where it stands.
        met = 0

        def walk(value: Any, depth: int) -> Any:
            nonlocal met
            met += 1
            if met > _MOST_VALUES:
                raise Refused(f'containers that share values, {_MOST_VALUES:,} when written out')
            if isinstance(value, (str, int, float, complex, bytes, torch.dtype, type(None))) \
                    and not isinstance(value, _Name):
                return value
            if id(value) in done:
                if done[id(value)] is done:
                    raise Refused('a container that contains itself')
                out, inside = done[id(value)]
                met += inside
                return out
            if depth > _DEPTH:
                raise Refused(f'containers nested more than {_DEPTH} deep')
            kept.append(value)
            done[id(value)] = done
            before = met
            if isinstance(value, (_Tensor, _Encoded)):
                if isinstance(value, _Encoded):
                    self._take_long(len(value.text))
                out = value.build()
            elif isinstance(value, _Array) and value.value is not None:
                out = value.value
            elif isinstance(value, _DType):
                out = value.value.str
            elif isinstance(value, dict):
                out = value
                for key, inner in value.items():
                    value[key] = walk(inner, depth + 1)
            elif isinstance(value, list):
                value[:] = [walk(inner, depth + 1) for inner in value]
                out = value
            elif type(value) is tuple:
                inner = tuple(walk(part, depth + 1) for part in value)
                out = value if all(a is b for a, b in zip(inner, value, strict=True)) else inner
            elif isinstance(value, (torch.Size, np.ndarray)):
                out = value
            else:
                what = value if isinstance(value, _Name) else type(value).__name__.lstrip('_')
                raise Refused(f'{what} as a value')
            done[id(value)] = out, met - before
            return out

        return walk(contents, 0)


def _fill(target: Any, values: list[Any]) -> dict:
    if not isinstance(target, dict) or len(values) % 2:
        raise Refused(f'entries for a {type(target).__name__.lstrip("_")}')
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_key(key)] = value
    return target


def _extend(target: Any, values: list[Any]) -> None:
    if type(target) is not list:
        raise Refused(f'items for a {type(target).__name__.lstrip("_")}')
    target += values


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _Pending):
        target.set_state(state)
    elif isinstance(target, Attributes):
        attributes = state[0] if isinstance(state, tuple) and state else state
        target.update({_key(key): value for key, value in attributes.items()}
                      if isinstance(attributes, dict) else {})
    elif isinstance(target, OrderedDict) and isinstance(state, dict):
        # The versions of a model's modules, by which torch reads old names. Other entries would
        # tell torch how to load.
        versions = state.get('_metadata')
        if isinstance(versions, dict):
            target._metadata = {
                name: {'version': entry['version']} for name, entry in versions.items()
                if isinstance(entry, dict) and type(entry.get('version')) is int}
    elif isinstance(target, (dict, _Tensor)) and isinstance(state, (dict, tuple, type(None))):
        # Attributes that somebody hung on a container or a tensor.
        return
    else:
        raise Refused(f'a state for a {type(target).__name__.lstrip("_")}')


def check_names(state: dict[Any, Any]) -> None:
    """Check that every key of a state dict is a short printable text.

    Raises:
        UserError: a key is something else. The message has the first such key.
    """
    for name in state:
        if not (isinstance(name, str) and name.isprintable() and len(name) <= _LONGEST_NAME):
            raise UserError('the checkpoint has a tensor without a usable name: '
                            f'{ascii(name)[:80]}. Names are printable text of at most '
                            f'{_LONGEST_NAME} characters')
