"""Compile the kernels for this processor and keep the library.

The library is a file in the cache folder, `$XDG_CACHE_HOME/visattn_dense` or
`~/.cache/visattn_dense`. Its name depends on the source, the compiler and the processor. So several
kinds of machines can share a cache folder, which then holds one library for each kind. `$CXX` names
the compiler. Without `$CXX`, g++ is taken, else c++. The compiler has to be GCC 9 or later.
"""
from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch  # its OpenMP runtime is the one that the kernels use

_FOLDER = Path(__file__).parent
SOURCES = [_FOLDER / name for name in ('attention.cpp', 'linear.cpp', 'chain.cpp', 'add_norm.cpp',
                                       'linear_attention.cpp', 'convolution.cpp', 'routing.cpp',
                                       'replay.cpp')]
_HEADERS = [_FOLDER / name for name in ('vectors.h', 'shares.h', 'tiles.h', 'activations.h',
                                        'products.h', 'depthwise.h', 'attention.h',
                                        'attention_vectors.h', 'attention_tiles.h', 'replay.h')]
FLAGS = ['-std=c++17', '-O3', '-march=native', '-ffp-contract=fast', '-fno-math-errno', '-fPIC',
         '-fopenmp']
# Without -fopenmp: torch's OpenMP runtime is loaded already; a second one would start more threads.
LINK_FLAGS = ['-shared']
_SECONDS = 300


_POINTER, _STRIDE, _INTEGER, _REAL = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int,
                                      ctypes.c_float)


class Source(ctypes.Structure):
    """Where the rows of a linear layer come from, as in products.h."""
    _fields_ = [('x', _POINTER), ('update', _POINTER), ('stride', _STRIDE),
                ('update_stride', _STRIDE), ('channels', _INTEGER), ('norm', _INTEGER),
                ('epsilon', _REAL),
                *((name, _INTEGER) for name in ('kernel', 'step', 'padding', 'height', 'width',
                                                'out_height', 'out_width'))]


class Part(ctypes.Structure):
    """Windows of one kind and a depthwise convolution inside them, as in attention.cpp."""
    _fields_ = [*((name, _POINTER) for name in ('rows', 'starts', 'absent', 'weight', 'bias')),
                *((name, _INTEGER) for name in ('groups', 'height', 'width', 'top', 'left'))]


class Call(ctypes.Structure):
    """A kernel that takes its arguments as bits, and these, as in replay.cpp."""
    _fields_ = [('kernel', _POINTER), ('bits', _POINTER)]


class _Unavailable(Exception):
    """The kernels cannot be had; the message says why."""


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return _library(), None
    except _Unavailable as error:
        return None, str(error)


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None. The first call of a process finds or compiles the kernels."""
    return _load()[0]


def available() -> bool:
    """Whether there are compiled kernels. The first call compiles the kernels if necessary."""
    return library() is not None


def why_not() -> str | None:
    """Why there are no kernels, or None if there are kernels."""
    return _load()[1]


@functools.cache
def tiles() -> bool:
    """Whether linear layers use the tile registers of the processor (AMX); see tiles.h."""
    return (os.environ.get('VISATTN_AMX') != '0' and available()
            and bool(library().visattn_tiles()))


def _library() -> ctypes.CDLL:
    if os.environ.get('VISATTN_NATIVE') == '0':
        raise _Unavailable('VISATTN_NATIVE=0 is set')
    compiler = _compiler()
    path = cache_folder() / f'kernels-{_fingerprint(compiler)}.so'
    try:
        if path.is_file():
            try:
                return _open(path)
            except OSError:
                pass                  # damaged, for example by a full disk: compile again
        logging.getLogger('visattn_dense').info(
            'compiling the inference kernels for this processor: %s', path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # All processes of a run may compile at once: each process has a folder of its own.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            os.replace(_compile(compiler, Path(folder)), path)
        return _open(path)
    except OSError as error:
        raise _Unavailable(f'{path} cannot be made or loaded: {error}') from error


def _open(path: Path) -> ctypes.CDLL:
    """The library, with the types of its functions as at the ends of the sources."""
    opened = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    pointer, stride, integer, real = _POINTER, _STRIDE, _INTEGER, _REAL
    source = ctypes.POINTER(Source)
    for name, result, arguments in (
            ('attention', None,
             [pointer] * 4 + [stride] * 4 + [pointer] * 6 + [integer] * 5 + [real] + [integer] * 3),
            ('windows', None,
             [pointer, stride, stride, pointer] + [integer] * 3 + [ctypes.POINTER(Part)]
             + [integer] * 3 + [real] + [integer] * 4),
            ('focused', None,
             [pointer] * 4 + [stride] * 4 + [pointer] * 5 + [real] + [integer] * 6),
            ('relu_attention', None,
             [pointer] * 2 + [stride] * 2 + [integer] * 4 + [real] + [integer] * 2),
            ('grouped', None, [pointer] + [stride] * 2 + [pointer] * 2 + [integer] * 5),
            ('depthwise', None,
             [pointer] * 2 + [stride] * 2 + [integer] * 9 + [pointer] * 2 + [integer] * 2
             + [pointer] * 3 + [real] + [integer] * 2),
            ('region_means', None,
             [pointer, stride] + [integer] * 5 + [pointer] + [integer] * 2),
            ('route', None,
             [pointer] * 2 + [stride] * 2 + [integer] * 4 + [real] + [pointer] * 2 + [integer] * 2),
            ('replay', None, [ctypes.POINTER(Call), integer]),
            ('tiles', integer, []),
            ('reordered', stride, [integer] * 3),
            ('reorder', None, [pointer] * 2 + [integer] * 3 + [pointer]),
            ('linear', None,
             [source, pointer] + [integer] * 2 + [pointer, stride] * 2 + [stride] * 3
             + [integer] * 2),
            ('add_norm', None,
             [pointer, stride] * 2 + [stride, integer] + [pointer] * 2 + [real, integer]
             + [pointer] * 2 + [integer] * 2),
            ('chain', None,
             [source] + [pointer, integer] * 2 + [integer] * 2 + [pointer, stride] * 2
             + [stride, integer] + [pointer] * 3 + [real, integer]),
            ('mobile', None,
             [source, pointer, integer, pointer, pointer] + [integer] * 3 + [pointer, stride] * 2
             + [integer] * 3)):
        function = getattr(opened, f'visattn_{name}')
        function.restype, function.argtypes = result, arguments
    return opened


def _compiler() -> list[str]:
    named = os.environ.get('CXX')
    if named:
        try:
            command = shlex.split(named)
        except ValueError as error:
            raise _Unavailable(f'CXX={named}: {error}') from error
        if not command or shutil.which(command[0]) is None:
            raise _Unavailable(f'CXX={named} names no program')
        return command
    for name in ('g++', 'c++'):
        if shutil.which(name):
            return [name]
    raise _Unavailable('there is no C++ compiler (g++); install one to get the kernels')


def cache_folder() -> Path:
    """Where compiled kernels and measured choices are kept."""
    cache = os.environ.get('XDG_CACHE_HOME')
    return (Path(cache) if cache else Path.home() / '.cache') / 'visattn_dense'


def _fingerprint(compiler: list[str]) -> str:
    """A hash of everything that the machine code depends on."""
    version = _output([*compiler, '--version']).partition('\n')[0]
    parts = [sources(), *FLAGS, *LINK_FLAGS, version, processor(), torch.__version__]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


@functools.cache
def sources() -> str:
    """The text of the kernels."""
    return '\0'.join(file.read_text(encoding='utf-8') for file in (*SOURCES, *_HEADERS))


def processor() -> str:
    """Model and instruction sets of the processor."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').split('\n\n')[0].splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    names = ('model', 'flags', 'Features', 'CPU part')
    return platform.machine() + ''.join(line for line in lines if line.startswith(names))


def _compile(compiler: list[str], folder: Path) -> Path:
    def unlinked(source: Path) -> str:
        file = str(folder / f'{source.stem}.o')
        _output([*compiler, *FLAGS, '-c', str(source), '-o', file])
        return file

    with ThreadPoolExecutor() as pool:
        files = list(pool.map(unlinked, SOURCES))
    linked = folder / 'kernels.so'
    _output([*compiler, *LINK_FLAGS, *files, '-o', str(linked)])
    return linked


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS,
                              check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise _Unavailable(f'{shlex.join(command)}: {error}') from error
    if done.returncode:
        raise _Unavailable(f'{shlex.join(command)} failed: {done.stderr.strip()[:500]}')
    return done.stdout
