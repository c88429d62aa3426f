"""Hostile and damaged checkpoints, made anew for every test: no such file lies in the repository.

`cases()` gives a name and a writer for each. A writer gets the path to write to, the state dict
that the model expects, and a folder in which nothing may appear and from which nothing may vanish.
"""
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

Writer = Callable[[Path, dict, Path], None]


class Call:
    """A pickle that calls `function(*arguments)` when Python reads it."""

    def __init__(self, function: Callable, *arguments: object, state: object = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple:
        return self.parts


class Named:
    """Pickled as the global name `module.name`."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Raw(bytes):
    """Bytes of pickle instructions that stand for a value."""


class _Pickler(pickle._Pickler):
    """Python's own pickler in Python, which also writes names and raw instructions."""

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Raw):
            self.write(bytes(obj))
        elif isinstance(obj, Named):
            self.write(f'c{obj.module}\n{obj.name}\n'.encode())
        else:
            super().save(obj, save_persistent_id)


def pickled(obj: object, protocol: int = 2) -> bytes:
    out = io.BytesIO()
    _Pickler(out, protocol).dump(obj)
    return out.getvalue()


def reduce(module: str, name: str, *arguments: object) -> Raw:
    """A call of module.name, by name alone: the module need not exist."""
    return Raw(f'c{module}\n{name}\n'.encode() + pickled(arguments)[2:-1] + b'R')


def write_zip(path: Path, pickle_bytes: bytes, records: dict[str, bytes] | None = None,
              compression: int = zipfile.ZIP_STORED) -> None:
    """An archive laid out as torch.save lays it out, around any pickle."""
    with zipfile.ZipFile(path, 'w', compression) as archive:
        archive.writestr('x/data.pkl', pickle_bytes)
        archive.writestr('x/byteorder', b'little')
        for key, value in (records or {}).items():
            archive.writestr(f'x/data/{key}', value)
        archive.writestr('x/version', b'3\n')


def storage(key: str, count: int, kind: str = 'FloatStorage') -> Raw:
    """The persistent id of a tensor storage."""
    identity = pickled(('storage', Named('torch', kind), key, 'cpu', count))
    return Raw(identity[2:-1] + b'Q')


def tensor(key: str, count: int, size: tuple, stride: tuple, offset: int = 0,
           kind: str = 'FloatStorage') -> Raw:
    return reduce('torch._utils', '_rebuild_tensor_v2', storage(key, count, kind), offset, size,
                  stride, False, Raw(b'N'))


def numpy_array(shape: Raw | tuple, dtype: Raw, raw: bytes) -> Raw:
    made = reduce('numpy.core.multiarray', '_reconstruct', Named('numpy', 'ndarray'), (0,), b'b')
    return Raw(bytes(made) + pickled((1, shape, dtype, False, raw))[2:-1] + b'b')


def numpy_dtype(code: str, state: object = (3, '<', None, None, None, -1, -1, 0)) -> Raw:
    return Raw(bytes(reduce('numpy', 'dtype', code, False, True)) + pickled(state)[2:-1] + b'b')


# What a file with one thing wrong looks like otherwise.

def training(state: dict, **changes: object) -> dict:
    """The contents of a training checkpoint after iteration 2 of a run of eight, without
    optimizer; `changes` replace entries, of `meta` where the name begins with meta_."""
    out = {'meta': dict(iter=2, epoch=0, seed=5), 'state_dict': OrderedDict(state),
           'message_hub': dict(log_scalars={}, runtime_info={}, resumed_keys={})}
    for name, value in changes.items():
        if name.startswith('meta_'):
            out['meta'][name.removeprefix('meta_')] = value
        else:
            out[name] = value
    return out


def saved(**changes: object) -> Writer:
    def write(path: Path, state: dict, guarded: Path) -> None:
        torch.save(training(state, **{name: value(guarded) if callable(value) else value
                                      for name, value in changes.items()}), path)
    return write


def beside_the_weights(value: Callable[[Path], object]) -> Writer:
    """The right weights, and one hostile value where scripts leave their settings."""
    def write(path: Path, state: dict, guarded: Path) -> None:
        buffer = io.BytesIO()
        torch.save(training(state), buffer)
        with zipfile.ZipFile(buffer) as archive:
            records = {name.partition('/')[2]: archive.read(name) for name in archive.namelist()}
        whole = records.pop('data.pkl')
        assert whole[-1:] == b'.'
        # One entry more for the dict that is the value of the pickle.
        hostile = b'X\x04\x00\x00\x00args' + pickled(value(guarded))[2:-1] + b's.'
        write_zip(path, whole[:-1] + hostile,
                  {name.removeprefix('data/'): data for name, data in records.items()
                   if name.startswith('data/')})
    return write


def with_state(change: Callable[[dict], dict], **kwargs: object) -> Writer:
    def write(path: Path, state: dict, guarded: Path) -> None:
        torch.save(training(change(dict(state))), path, **kwargs)
    return write


def bytes_changed(change: Callable[[bytes], bytes], legacy: bool = False) -> Writer:
    def write(path: Path, state: dict, guarded: Path) -> None:
        torch.save(training(state), path, _use_new_zipfile_serialization=not legacy)
        path.write_bytes(change(path.read_bytes()))
    return write


def safetensors(change: Callable[[dict], object] | None = None, *,
                data: Callable[[bytes], bytes] = bytes,
                header: Callable[[bytes], bytes] = bytes) -> Writer:
    def write(path: Path, state: dict, guarded: Path) -> None:
        from safetensors.torch import save
        whole = save({name: value.contiguous() for name, value in state.items()})
        length = int.from_bytes(whole[:8], 'little')
        entries = json.loads(whole[8:8 + length])
        text = json.dumps(change(entries) if change else entries).encode()
        text = header(text + b' ' * (-len(text) % 8))
        path.write_bytes(len(text).to_bytes(8, 'little') + text + data(whole[8 + length:]))
    return write


def plain(content: bytes | Callable[[Path], bytes]) -> Writer:
    def write(path: Path, state: dict, guarded: Path) -> None:
        path.write_bytes(content(guarded) if callable(content) else content)
    return write


def first_float(state: dict) -> str:
    return next(name for name, value in state.items() if value.is_floating_point())


def replaced(make: Callable[[torch.Tensor], object]) -> Callable[[dict], dict]:
    def change(state: dict) -> dict:
        name = first_float(state)
        return {**state, name: make(state[name])}
    return change


def everywhere(make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict], dict]:
    return lambda state: {name: make(value) if value.is_floating_point() else value
                          for name, value in state.items()}


def flipped(at: float) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        out = bytearray(data)
        out[int(len(out) * at)] ^= 0xFF
        return bytes(out)
    return change


def cyclic() -> dict:
    out: dict = {}
    out['state_dict'] = out
    return out


def nested(depth: int, wrap: Callable[[object], object]) -> Raw:
    """`wrap` applied `depth` times, written without recursion."""
    opening = {list: b']', dict: b'}U\x01a'}[type(wrap(0))]
    closing = {list: b'a', dict: b's'}[type(wrap(0))]
    return Raw(opening * depth + b'N' + closing * depth)


def laughs(levels: int) -> Raw:
    """A list of ten lists of ten lists ..., each level the same object."""
    out = b']q\x00'
    for level in range(1, levels):
        out += b'0](' + b'h' + bytes([level - 1])
        out += (b'h' + bytes([level - 1])) * 9 + b'eq' + bytes([level])
    return Raw(out)


def text(length: int) -> bytes:
    return b'X' + struct.pack('<I', length) + b'a' * length


def _executing() -> Iterator[tuple[str, Writer]]:
    """Code that Python's own reader would run."""
    calls = {
        'os.mkdir': lambda g: Call(os.mkdir, str(g / 'executed')),
        'os.system': lambda g: Call(os.system, f'touch {g / "executed"}'),
        'os.remove': lambda g: Call(os.remove, str(g / 'precious')),
        'shutil.rmtree': lambda g: Call(shutil.rmtree, str(g)),
        'eval': lambda g: Call(eval, f'open({str(g / "executed")!r}, "w")'),
        'exec': lambda g: Call(exec, f'open({str(g / "executed")!r}, "w")'),
        'open': lambda g: Call(open, str(g / 'executed'), 'w'),
        'getattr chain': lambda g: reduce('builtins', 'getattr', Named('os', 'path'), 'os'),
        'import': lambda g: reduce('builtins', '__import__', 'antigravity'),
        'subprocess': lambda g: reduce('subprocess', 'check_call', ['touch', str(g / 'executed')]),
        'posix.system': lambda g: reduce('posix', 'system', f'touch {g / "executed"}'),
        'runpy': lambda g: reduce('runpy', 'run_path', str(g / 'precious')),
        'ctypes': lambda g: reduce('ctypes', 'string_at', 1, 8),
        'numpy load': lambda g: reduce('numpy', 'load', str(g / 'precious'), None, True),
        'numpy fromfile': lambda g: reduce('numpy', 'fromfile', '/etc/passwd', 'u1'),
        'torch load': lambda g: reduce('torch', 'load', str(g / 'precious')),
        'torch hub': lambda g: reduce('torch.hub', 'load', str(g), 'x', Raw(b'N'), 'local'),
        'torch jit': lambda g: reduce('torch.jit', 'load', str(g / 'precious')),
        'pickle loads': lambda g: reduce('pickle', 'loads', pickled(Call(os.mkdir,
                                                                         str(g / 'executed')))),
        'functools partial': lambda g: reduce('functools', 'partial', Named('os', 'system')),
        'config from text': lambda g: reduce('mmengine.config', 'Config.fromstring',
                                             f'import os; os.mkdir({str(g / "executed")!r})',
                                             '.py'),
        'registry': lambda g: reduce('mmengine.registry', 'build_from_cfg', {}, Raw(b'N')),
        'codecs': lambda g: reduce('_codecs', 'decode', b'x', 'zip'),
        'torch tensor method': lambda g: reduce('torch', 'from_file', str(g / 'precious')),
    }
    for name, value in calls.items():
        yield f'runs {name}', beside_the_weights(value)
    yield 'runs os.system, as the whole file', plain(
        lambda g: pickled(Call(os.system, f'touch {g / "executed"}')))
    yield 'runs os.mkdir, legacy', lambda path, state, guarded: torch.save(
        training(state, args=Call(os.mkdir, str(guarded / 'executed'))), path,
        _use_new_zipfile_serialization=False)
    yield 'runs os.mkdir, protocol 4', lambda path, state, guarded: torch.save(
        training(state, args=Call(os.mkdir, str(guarded / 'executed'))), path, pickle_protocol=4)
    yield 'runs text of meta.config', saved(
        meta_config=lambda g: f'import os\nx = os.mkdir({str(g / "executed")!r})\n')
    yield 'runs text of meta.cfg', saved(
        meta_cfg=lambda g: f'import os\nx = os.mkdir({str(g / "executed")!r})\n')
    yield 'runs an instance', beside_the_weights(
        lambda g: Raw(b'(S\'touch /tmp/never\'\nios\nsystem\n'))
    yield 'runs a build', beside_the_weights(
        lambda g: Raw(b'ccollections\nOrderedDict\n)R}U\x0c__setstate__cos\nsystem\nsb'))
    yield 'extension code', beside_the_weights(lambda g: Raw(b'\x82\x01'))


def _deleting() -> Iterator[tuple[str, Writer]]:
    """Names of files that a run would remove."""
    def hub(**info: object) -> dict:
        return dict(log_scalars={}, runtime_info=info, resumed_keys={name: True for name in info})

    yield 'best_ckpt elsewhere', saved(message_hub=lambda g: hub(
        best_ckpt=str(g / 'precious'), best_score=-1.))
    yield 'best_ckpt of a right name elsewhere', saved(message_hub=lambda g: hub(
        best_ckpt=str(g / 'best_mIoU_iter_2.pth'), best_score=-1.))
    yield 'best_ckpt with dots', saved(message_hub=lambda g: hub(
        best_ckpt=f'work/../{g.name}/precious', best_score=-1.))
    yield 'best_ckpt a folder', saved(message_hub=lambda g: hub(best_ckpt=str(g), best_score=-1.))
    yield 'best_ckpt a number', saved(message_hub=hub(best_ckpt=7, best_score=-1.))
    yield 'best_ckpt of a metric', saved(message_hub=lambda g: hub(
        best_ckpt_mIoU=str(g / 'precious'), best_score_mIoU=-1.))
    yield 'keep_ckpt_ids with dots', saved(message_hub=lambda g: hub(
        keep_ckpt_ids=[f'x/../../../{g.name}/precious'] * 9))
    yield 'keep_ckpt_ids a dict', saved(message_hub=hub(keep_ckpt_ids={'a': 1}))
    yield 'keep_ckpt_ids huge', saved(message_hub=hub(keep_ckpt_ids=[10**40]))
    yield 'last_ckpt elsewhere', saved(message_hub=lambda g: hub(last_ckpt=str(g / 'precious')))
    yield 'best_score text', saved(message_hub=hub(best_score='high'))
    yield 'best_score NaN', saved(message_hub=hub(best_score=float('nan')))


def _pointers() -> Iterator[tuple[str, Writer]]:
    """Bytes of the file that would become addresses, and arrays that claim memory."""
    object_dtype = lambda: reduce('numpy', 'dtype', 'O', False, True)  # noqa: E731
    values = {
        'ndarray over a buffer of pointers': lambda: reduce(
            'numpy', 'ndarray', (2,), object_dtype(), b'A' * 16),
        'array of objects': lambda: numpy_array((2,), object_dtype(), b'A' * 16),
        'dtype made into objects': lambda: numpy_array((2,), numpy_dtype(
            'V8', (3, '|', None, ('f',), {'f': (object_dtype(), 0)}, 8, 1, 63)), b'A' * 16),
        'dtype of f8 made into objects': lambda: numpy_array((2,), numpy_dtype(
            'f8', (3, '|', None, ('f',), {'f': (object_dtype(), 0)}, 8, 1, 63)), b'A' * 16),
        'array of text': lambda: numpy_array((2,), numpy_dtype('U2'), b'A' * 16),
        'array larger than its bytes': lambda: numpy_array((1 << 40,), numpy_dtype('f8'),
                                                           b'A' * 16),
        'array of negative shape': lambda: numpy_array((-1,), numpy_dtype('f8'), b'A' * 16),
        'array of 3 GB of nothing': lambda: reduce('numpy', 'zeros', (3 << 30,), 'u1'),
        'ndarray of 3 GB': lambda: reduce('numpy', 'ndarray', (3 << 30,), numpy_dtype('u1')),
        'scalar of an object': lambda: reduce('numpy.core.multiarray', 'scalar', object_dtype(),
                                              b'A' * 8),
        'scalar too short': lambda: reduce('numpy.core.multiarray', 'scalar', numpy_dtype('f8'),
                                           b'A'),
        'frombuffer of objects': lambda: reduce('numpy._core.numeric', '_frombuffer', b'A' * 16,
                                                object_dtype(), (2,), 'C'),
        'bytearray of 3 GB': lambda: reduce('builtins', 'bytearray', 3 << 30),
        'bytes of 3 GB': lambda: reduce('builtins', 'bytes', 3 << 30),
        'list of 3 GB': lambda: reduce('builtins', 'range', 3 << 30),
        'bytearray that claims 3 GB': lambda: Raw(b'\x96' + struct.pack('<Q', 3 << 30)),
        'bytes that claim an exabyte': lambda: Raw(b'\x8e' + struct.pack('<Q', 1 << 60)),
        'text that claims 3 GB': lambda: Raw(b'\x8d' + struct.pack('<Q', 3 << 30)),
        'memo of 30 GB': lambda: Raw(b'Nr' + struct.pack('<I', (1 << 32) - 1)),
        'a number of a megabyte': lambda: Raw(b'\x8b' + struct.pack('<i', 1 << 20) + b'\x7f' * (
            1 << 20)),
        'a number of 5000 digits': lambda: Raw(b'L' + b'9' * 5000 + b'L\n'),
        'a million lists': lambda: Raw(b']' + b']a' * (1 << 20)),
        'ten to the twentieth lists': lambda: laughs(20),
        'a device named by ten to the twentieth lists': lambda: Raw(
            b'ctorch\ndevice\n' + laughs(20) + b'\x85R'),
        'a path of 3 GB': lambda: Raw(b'cpathlib\nPosixPath\n(' + text(1 << 20) + b'q\x00'
                                      + b'h\x00' * 3000 + b'tR'),
        'bytes made 300 times': lambda: Raw(b'](' + text(5 << 20) + b'q\x000'
                                            + b'c_codecs\nencode\nh\x00\x85R' * 300 + b'e'),
        'a list copied 500 times': lambda: Raw(
            b'](](' + b'N' * 500_000 + b'eq\x00' + b'cbuiltins\nset\nh\x00\x85R' * 500 + b'e'),
        'lists 100,000 deep': lambda: nested(100_000, lambda x: [x]),
        'dicts 100,000 deep': lambda: nested(100_000, lambda x: {'a': x}),
        'lists 100 deep': lambda: nested(100, lambda x: [x]),
        'a list in itself': lambda: Raw(b']q\x00h\x00a'),
        'a dict in itself': lambda: Raw(b'}q\x00U\x01ah\x00s'),
        'a key that is a list': lambda: Raw(b'}]Ns'),
        'a key that is a tensor': lambda: Raw(b'}' + bytes(tensor('0', 1, (1,), (1,))) + b'Ns'),
        'a key that is a number of 100 bits': lambda: Raw(b'}\x8a\x0d' + b'\x7f' * 13 + b'Ns'),
        'too few values': lambda: Raw(b'00000000'),
        'a class as a value': lambda: Named('numpy', 'ndarray'),
        'a storage as a value': lambda: storage('0', 1),
        'quantised tensor': lambda: reduce('torch._utils', '_rebuild_qtensor', storage('0', 1), 0,
                                           (1,), (1,), (), False, Raw(b'N')),
        'sparse tensor': lambda: reduce('torch._utils', '_rebuild_sparse_tensor', 0, ()),
        'meta tensor': lambda: reduce('torch._utils', '_rebuild_meta_tensor_no_storage',
                                      Named('torch', 'float32'), (1 << 40,), (1,), False),
        'tensor from numpy': lambda: reduce('torch._utils', '_rebuild_device_tensor_from_numpy',
                                            0, Named('torch', 'float32'), 'cpu', False),
        'wrapper tensor': lambda: reduce('torch._utils', '_rebuild_wrapper_subclass', 0, 0, 0, 0,
                                         0, 0, 0, 0),
    }
    for name, value in values.items():
        yield name, beside_the_weights(lambda g, value=value: value())
    views = {
        'a view of 3 GB of four bytes': tensor('0', 1, (3 << 28,), (0,)),
        'a view beyond its storage': tensor('0', 1, (2,), (1,)),
        'a view that begins beyond its storage': tensor('0', 1, (1,), (1,), offset=1 << 20),
        'a view of negative offset': tensor('0', 1, (1,), (1,), offset=-4),
        'a view of negative stride': tensor('0', 1, (1, 1), (-1, 1)),
        'a view whose size overflows': tensor('0', 1, (1 << 40, 1 << 40), (1, 1)),
        'a tensor without its storage': tensor('nowhere', 4, (4,), (1,)),
        'a storage of 3 GB that is not there': tensor('0', 3 << 28, (1,), (1,)),
        'a storage of a negative size': tensor('0', -1, (1,), (1,)),
        'a storage of another class': tensor('0', 1, (1,), (1,), kind='QInt8Storage'),
        'a storage called ../../x': tensor('../../x', 1, (1,), (1,)),
    }
    for name, value in views.items():
        yield name, lambda path, state, guarded, value=value: write_zip(
            path, pickled({'state_dict': {first_float(state): value}, 'meta': dict(iter=1)}),
            {'0': b'AAAA'})
    yield 'optimizer of expanded views', lambda path, state, guarded: write_zip(
        path, pickled({'state_dict': {}, 'meta': dict(iter=1), 'optimizer': {
            'state': {i: {'exp_avg': tensor('0', 1 << 18, (100, 1 << 18), (0, 1))}
                      for i in range(30)}}}), {'0': bytes(1 << 20)})


def _containers() -> Iterator[tuple[str, Writer]]:
    """Files whose frame is wrong."""
    for name, content in {
            'empty': b'', 'one byte': b'\x80', 'text': b'version https://git-lfs.github.com\n',
            'a web page': b'<!DOCTYPE html><html><body>404</body></html>', 'zeros': bytes(4096),
            'random bytes': np.random.default_rng(0).bytes(4096), 'an empty zip': b'PK\x05\x06'
            + bytes(18), 'a pickle of a list': pickle.dumps([1, 2, 3]),
            'a pickle without end': b'\x80\x02' + b'N' * 100,
            'a picture': b'\x89PNG\r\n\x1a\n' + bytes(100),
            'the first bytes of a zip': b'PK\x03\x04' + bytes(10),
            'gzip': b'\x1f\x8b' + bytes(100)}.items():
        yield name, plain(content)
    for at in (0, .001, .01, .1, .3, .5, .9, .99, .999):
        yield f'a flipped byte at {at}', bytes_changed(flipped(at))
    for at in (.001, .01, .05, .5, .999):
        yield f'a flipped byte at {at}, legacy', bytes_changed(flipped(at), legacy=True)
    for keep in (.01, .5, .9, .999):
        yield f'cut to {keep}', bytes_changed(lambda data, keep=keep: data[:int(len(data) * keep)])
        yield f'cut to {keep}, legacy', bytes_changed(
            lambda data, keep=keep: data[:int(len(data) * keep)], legacy=True)
    yield 'bytes after the end', bytes_changed(lambda data: data + b'more')
    yield 'bytes before the beginning', bytes_changed(lambda data: bytes(64) + data)
    yield 'one zip after another', bytes_changed(lambda data: data + data)
    yield 'a zip comment', bytes_changed(lambda data: data[:-2] + b'\x04\x00PK\x05\x06')

    def compressed(path: Path, state: dict, guarded: Path) -> None:
        write_zip(path, pickled({'state_dict': {first_float(state): tensor(
            '0', 1 << 26, (1 << 26,), (1,))}}), {'0': bytes(1 << 28)}, zipfile.ZIP_DEFLATED)
    yield 'a zip of 300 kB that unpacks to 256 MB', compressed

    def overlapping(path: Path, state: dict, guarded: Path) -> None:
        # One record's bytes under many names.
        write_zip(path, pickled({'state_dict': {first_float(state): tensor(
            '0', 1 << 18, (1 << 18,), (1,))}}), {'0': bytes(1 << 20)})
        data = path.read_bytes()
        end = data.rindex(b'PK\x05\x06')
        start = struct.unpack('<I', data[end + 16:end + 20])[0]
        entry = data[start:end]
        count = struct.unpack('<H', data[end + 10:end + 12])[0]
        tail = (data[end:end + 8] + struct.pack('<HHII', 300 * count, 300 * count,
                                                300 * len(entry), start) + b'\x00\x00')
        path.write_bytes(data[:start] + entry * 300 + tail)
    yield 'records that share their bytes', overlapping

    def many_records(path: Path, state: dict, guarded: Path) -> None:
        local, directory, at = [], [], 0
        for number in range(300_000):
            name = b'%x' % number
            local.append(struct.pack('<4s5H3I2H', b'PK\x03\x04', 20, 0, 0, 0, 0, 0, 0, 0,
                                     len(name), 0) + name)
            directory.append(struct.pack('<4s6H3I5H2I', b'PK\x01\x02', 20, 20, 0, 0, 0, 0, 0, 0, 0,
                                         len(name), 0, 0, 0, 0, 0, at) + name)
            at += len(local[-1])
        whole = b''.join(directory)
        path.write_bytes(b''.join(local) + whole + struct.pack(
            '<4s4H2IH', b'PK\x05\x06', 0, 0, 65535, 65535, len(whole), at, 0))
    yield 'a zip of 300,000 empty records', many_records

    def two_directories(path: Path, state: dict, guarded: Path) -> None:
        write_zip(path, pickled({'state_dict': {}}))
        first = path.read_bytes()
        torch.save(training(state, args=Call(os.mkdir, str(guarded / 'executed'))), path)
        path.write_bytes(first + path.read_bytes())
    yield 'a zip with two directories', two_directories

    def twice(path: Path, state: dict, guarded: Path) -> None:
        with zipfile.ZipFile(path, 'w') as archive:
            for _ in range(2):
                archive.writestr('x/data.pkl', pickled({'state_dict': {}}))
    yield 'a record twice', twice

    def torchscript(path: Path, state: dict, guarded: Path) -> None:
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(path))
    yield 'a TorchScript program', torchscript

    def no_pickle(path: Path, state: dict, guarded: Path) -> None:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x/version', b'3\n')
    yield 'a zip without data.pkl', no_pickle

    def big_endian(path: Path, state: dict, guarded: Path) -> None:
        with zipfile.ZipFile(path, 'w') as archive:
            archive.writestr('x/data.pkl', pickled({'state_dict': {}}))
            archive.writestr('x/byteorder', b'big')
    yield 'a big-endian zip', big_endian

    def encrypted(data: bytes) -> bytes:
        out = bytearray(data)
        at = out.rindex(b'PK\x01\x02')
        out[at + 8] |= 1
        return bytes(out)
    yield 'an encrypted record', bytes_changed(encrypted)

    def legacy_storage(data: bytes) -> bytes:
        return data[:-1000]
    yield 'a legacy file without its storages', bytes_changed(legacy_storage, legacy=True)

    def legacy_huge(path: Path, state: dict, guarded: Path) -> None:
        magic = pickled(0x1950a86a20f9469cfc6c) + pickled(1001) + pickled(
            dict(protocol_version=1001, little_endian=True, type_sizes={}))
        identity = pickled(('storage', Named('torch', 'FloatStorage'), '0', 'cpu', 3 << 28,
                            Raw(b'N')))
        value = reduce('torch._utils', '_rebuild_tensor_v2', Raw(identity[2:-1] + b'Q'), 0,
                       (3 << 28,), (1,), False, Raw(b'N'))
        path.write_bytes(magic + pickled({'state_dict': {first_float(state): value}})
                         + pickled(['0']) + struct.pack('<q', 3 << 28))
    yield 'a legacy file that names a storage of 3 GB', legacy_huge

    def legacy_many(path: Path, state: dict, guarded: Path) -> None:
        magic = pickled(0x1950a86a20f9469cfc6c) + pickled(1001) + pickled(
            dict(protocol_version=1001, little_endian=True, type_sizes={}))
        keys = [str(number) for number in range(100_000)]
        out = b'\x80\x02](U\x07storageq\x00ctorch\nFloatStorage\nq\x01U\x03cpuq\x02000'
        out += b''.join(b'(h\x00h\x01U' + bytes([len(key)]) + key.encode() + b'h\x02K\x00tQ'
                        for key in keys)
        path.write_bytes(magic + out + b'e.' + pickled(keys) + bytes(8 * len(keys)))
    yield 'a legacy file of 100,000 storages', legacy_many

    yield from {
            'safetensors cut off': safetensors(data=lambda data: data[:-10]),
            'safetensors with more data': safetensors(data=lambda data: data + bytes(10)),
            'safetensors header no JSON': safetensors(header=lambda text: text[:-20] + b'x' * 20),
            'safetensors header a list': safetensors(lambda entries: [entries]),
            'safetensors header nested': safetensors(
                header=lambda text: b'{"a":' + b'[' * 100_000 + b']' * 100_000 + b'}'),
            'safetensors offsets negative': safetensors(lambda entries: {
                **entries, 'x': dict(dtype='F32', shape=[1], data_offsets=[-4, 0])}),
            'safetensors offsets text': safetensors(lambda entries: {
                **entries, 'x': dict(dtype='F32', shape=[1], data_offsets=['a', 'b'])}),
            'safetensors shape of 3 GB': safetensors(lambda entries: {
                name: {**entry, 'shape': [3 << 30]} if name != '__metadata__' else entry
                for name, entry in entries.items()}),
            'safetensors overlapping': safetensors(lambda entries: {
                **entries, 'x': dict(dtype='F32', shape=[1], data_offsets=[0, 4])}),
            'safetensors of float8': safetensors(lambda entries: {
                name: dict(dtype='F8_E4M3', shape=[entry['data_offsets'][1]
                                                   - entry['data_offsets'][0]],
                           data_offsets=entry['data_offsets'])
                for name, entry in entries.items()}),
            'safetensors of an unknown dtype': safetensors(lambda entries: {
                name: {**entry, 'dtype': 'F3'} for name, entry in entries.items()}),
            'safetensors header of 3 GB': plain((3 << 30).to_bytes(8, 'little') + b'{' + bytes(99)),
            'safetensors header of 8 MB of dicts': plain(
                (8 << 20).to_bytes(8, 'little') + b'{"a":[' + b'{"":{"":0}},' * 699050 + b'0]}'),
            'safetensors header longer than the file': plain(
                (500).to_bytes(8, 'little') + b'{' + bytes(99))}.items()


def _contents() -> Iterator[tuple[str, Writer]]:
    """Readable files with contents that are not those of the model."""
    def whole(value: object) -> Writer:
        return lambda path, state, guarded: torch.save(value, path)

    for name, value in {'a list': [1, 2], 'a tensor': torch.zeros(3), 'None': None, 'a number': 7,
                        'an empty dict': {}, 'a dict of numbers': {'a': 1},
                        'a state dict in a list': {'state_dict': [torch.zeros(1)]},
                        'a state dict that is a tensor': {'state_dict': torch.zeros(1)},
                        'a state dict that is text': {'state_dict': 'x'},
                        'state_dict of state_dict of ...': cyclic(),
                        'no tensors in the state dict': {'state_dict': {'a': 1}},
                        }.items():
        yield f'contents are {name}', whole(value)
    yield 'keys that are numbers', with_state(lambda state: dict(enumerate(state.values())))
    yield 'a key that is no text', with_state(lambda state: {**state, 7: torch.zeros(1)})
    yield 'a key of None', with_state(lambda state: {**state, None: torch.zeros(1)})
    yield 'a key with an escape', with_state(lambda state: {**state, '\x1b[2Jx': torch.zeros(1)})
    yield 'a key with half a character', with_state(
        lambda state: {**state, '\ud800': torch.zeros(1)})
    yield 'a key of 10,000 characters', with_state(
        lambda state: {**state, 'x' * 10_000: torch.zeros(1)})
    yield 'contents are lines and escapes', whole({'\x1b[2Jx\n' * 1000: 1})
    yield '6000 prefixes', with_state(
        lambda state: {f'a{i}.b{i}.c{i}.{name}': torch.zeros(1) for i in range(6000)
                       for name in ('x',)})
    yield 'all NaN', with_state(everywhere(lambda t: torch.full_like(t, torch.nan)))
    yield 'all infinite', with_state(everywhere(lambda t: torch.full_like(t, torch.inf)))
    yield 'one NaN', with_state(replaced(lambda t: torch.full_like(t, torch.nan)))
    yield 'one NaN, legacy', with_state(replaced(lambda t: torch.full_like(t, torch.nan)),
                                        _use_new_zipfile_serialization=False)
    for dtype in ('float8_e4m3fn', 'complex64', 'int8', 'bool', 'int64'):
        yield f'all {dtype}', with_state(everywhere(
            lambda t, dtype=dtype: t.to(getattr(torch, dtype))))
    yield 'all uint16', with_state(everywhere(lambda t: t.to(torch.int32).to(torch.uint16)))
    yield 'all on the meta device', with_state(everywhere(lambda t: t.to('meta')))
    yield 'all sparse', with_state(everywhere(lambda t: t.to_sparse()))
    yield 'all quantised', with_state(everywhere(
        lambda t: torch.quantize_per_tensor(t.detach(), 1., 0, torch.qint8)))
    yield 'tensors of other shapes', with_state(everywhere(lambda t: t[None].clone()))
    yield 'half of the tensors', with_state(lambda state: dict(list(state.items())[::2]))
    yield 'other names', with_state(lambda state: {f'other.{i}': value
                                                   for i, value in enumerate(state.values())})
    yield 'tensors are lists', with_state(lambda state: {name: value.tolist()
                                                         for name, value in state.items()})
    yield 'tensors of no dimension', with_state(everywhere(lambda t: t.flatten()[0].clone()))
    yield 'tensors of no number', with_state(everywhere(lambda t: t[:0].clone()
                                                        if t.dim() else t))

    def versions(entry: dict) -> Writer:
        def write(path: Path, state: dict, guarded: Path) -> None:
            contents = training(everywhere(torch.Tensor.double)(state))
            contents['state_dict']._metadata = {
                name.rpartition('.')[0]: entry for name in state}
            torch.save(contents, path)
        return write
    yield 'versions of modules that are text', versions({'version': 'x'})
    yield 'versions of modules that ask to be assigned', versions(
        {'assign_to_params_buffers': True})


def _runs() -> Iterator[tuple[str, Writer]]:
    """Training checkpoints whose run cannot be gone on with."""
    for name, value in {'text': 'two', 'negative': -1, 'a fraction': 1.5, 'NaN': float('nan'),
                        'infinite': float('inf'), 'huge': 10**30, 'a list': [1], 'None': None,
                        'a truth': True, 'beyond the run': 10**6}.items():
        yield f'iteration {name}', saved(meta_iter=value)
    yield 'epoch negative', saved(meta_epoch=-3)
    for name, value in {'text': 'x', 'negative': -1, 'huge': 1 << 64}.items():
        yield f'seed {name}', saved(meta_seed=value)
    yield 'meta a list', saved(meta=[1])
    yield 'meta text', saved(meta='x')
    yield 'message hub text', saved(message_hub='x')
    yield 'message hub of lists', saved(message_hub=dict(log_scalars=[1], runtime_info=[2],
                                                        resumed_keys=[3]))
    yield 'dataset_meta text', saved(meta_dataset_meta='x')
    yield 'dataset_meta of numbers', saved(meta_dataset_meta=dict(classes=[1, 2, 3], palette=7))
    yield 'dataset_meta of colours that are none', saved(meta_dataset_meta=dict(
        classes=('a', 'b', 'c'), palette=[[1, 2], 'x', [0, 0, 999]]))

    def optimizer(lr: object = 1e-3, shape: tuple | None = None, fill: float = 0., marks: tuple = (
            'betas', 'eps', 'weight_decay'), count: int | None = None) -> Writer:
        def write(path: Path, state: dict, guarded: Path) -> None:
            weights = [value for name, value in state.items() if value.is_floating_point()
                       and not name.endswith(('running_mean', 'running_var'))]
            states = {i: dict(step=torch.tensor(2.), **{key: torch.full(
                shape or tuple(weight.shape), fill) for key in ('exp_avg', 'exp_avg_sq')})
                for i, weight in enumerate(weights)}
            group = dict(lr=lr, params=list(range(len(weights) if count is None else count)),
                         **dict.fromkeys(marks, 0.))
            torch.save(training(state, optimizer=dict(state=states, param_groups=[group])), path)
        return write

    for name, write in {
            'learning rate NaN': optimizer(lr=float('nan')),
            'learning rate infinite': optimizer(lr=float('inf')),
            'learning rate text': optimizer(lr='fast'),
            'learning rate negative': optimizer(lr=-1.),
            'optimizer state of other shapes': optimizer(shape=(3, 3)),
            'optimizer state of NaN': optimizer(fill=float('nan')),
            'optimizer of another kind': optimizer(marks=('momentum',)),
            'optimizer of fewer parameters': optimizer(count=3),
            'optimizer of more parameters': optimizer(count=10_000)}.items():
        yield name, write
    yield 'iteration of ten to the twentieth lists', lambda path, state, guarded: write_zip(
        path, pickled({'state_dict': {}, 'meta': {'iter': laughs(20)}}))
    yield 'optimizer text', saved(optimizer='x')
    yield 'optimizer without groups', saved(optimizer={'state': {}})
    yield 'optimizer groups of text', saved(optimizer={'state': {}, 'param_groups': ['x']})
    yield 'schedulers text', saved(param_schedulers='x')
    yield 'schedulers of other kinds', saved(param_schedulers=[{'step': 1, 'optimizer': 2}])
    yield 'schedulers NaN', saved(param_schedulers=[{'base_values': [float('nan')]}])
    yield 'schedulers with methods', saved(param_schedulers=[{'step': 7}])
    yield 'two schedulers', saved(param_schedulers=[{}, {}])


def cases() -> dict[str, Writer]:
    """name -> writer(path, state, guarded) for every kind."""
    out: dict[str, Writer] = {}
    for kind in (_executing, _deleting, _pointers, _containers, _contents, _runs):
        for name, write in kind():
            assert name not in out, name
            out[name] = write
    return out

