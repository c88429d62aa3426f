"""Compile kernels.cpp for this processor and keep what comes out.

The library is a file of the cache folder, `$XDG_CACHE_HOME/visattn_dense` or
`~/.cache/visattn_dense`, named after the source, the compiler and the processor: a folder that
several kinds of machines share holds one for each. `$CXX` names the compiler; without it the first
of g++ and c++ is taken. It has to be GCC 8 or later.
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
from pathlib import Path

import torch  # its OpenMP runtime is the one that the kernels use

SOURCE = Path(__file__).with_name('kernels.cpp')
FLAGS = ['-std=c++17', '-O3', '-march=native', '-ffp-contract=fast', '-fno-math-errno', '-fPIC',
         '-fopenmp']
# Without -fopenmp: torch's runtime is loaded already, and one more would bring its own threads.
LINK_FLAGS = ['-shared']
_SECONDS = 300


class _Unavailable(Exception):
    """There will be no kernels; the message says why."""


@functools.cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    try:
        return _library(), None
    except _Unavailable as error:
        return None, str(error)


def library() -> ctypes.CDLL | None:
    """The compiled kernels, or None; the first call of a process compiles or finds them."""
    return _load()[0]


def available() -> bool:
    """Whether there are compiled kernels; the first call compiles them if need be."""
    return library() is not None


def why_not() -> str | None:
    """Why there are no kernels, or None where there are."""
    return _load()[1]


def _library() -> ctypes.CDLL:
    if os.environ.get('VISATTN_NATIVE') == '0':
        raise _Unavailable('VISATTN_NATIVE=0 is set')
    compiler = _compiler()
    path = _folder() / f'kernels-{_fingerprint(compiler)}.so'
    try:
        if path.is_file():
            try:
                return _open(path)
            except OSError:
                pass                            # cut off by a full disk, say: made anew
        logging.getLogger('visattn_dense').info(
            'compiling the inference kernels for this processor: %s', path)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Processes of one run may all compile: each in a folder of its own.
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            os.replace(_compile(compiler, Path(folder)), path)
        return _open(path)
    except OSError as error:
        raise _Unavailable(f'{path} cannot be made or loaded: {error}') from error


def _open(path: Path) -> ctypes.CDLL:
    """The library with the types of its functions, which are those at the end of kernels.cpp."""
    opened = ctypes.CDLL(str(path), mode=os.RTLD_NOW | os.RTLD_LOCAL)
    pointer, stride, integer, real = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int,
                                      ctypes.c_float)
    for name, result, arguments in (
            ('attention', None,
             [pointer] * 4 + [stride] * 4 + [pointer] * 6 + [integer] * 5 + [real, integer]),
            ('focused', None,
             [pointer] * 4 + [stride] * 4 + [pointer] * 5 + [real] + [integer] * 5),
            ('depthwise', integer,
             [pointer] * 2 + [stride] * 2 + [integer] * 9 + [pointer] * 2 + [integer] * 3)):
        function = getattr(opened, f'visattn_{name}')
        function.restype, function.argtypes = result, arguments
    return opened


def _compiler() -> list[str]:
    named = os.environ.get('CXX')
    if named:
        command = shlex.split(named)
        if not command or shutil.which(command[0]) is None:
            raise _Unavailable(f'CXX={named} names no program')
        return command
    for name in ('g++', 'c++'):
        if shutil.which(name):
            return [name]
    raise _Unavailable('there is no C++ compiler (g++); install one to get the kernels')


def _folder() -> Path:
    cache = os.environ.get('XDG_CACHE_HOME')
    return (Path(cache) if cache else Path.home() / '.cache') / 'visattn_dense'


def _fingerprint(compiler: list[str]) -> str:
    """Of all that the machine code depends on."""
    version = _output([*compiler, '--version']).partition('\n')[0]
    parts = [SOURCE.read_text(encoding='utf-8'), *FLAGS, *LINK_FLAGS, version, _processor(),
             torch.__version__]
    return hashlib.sha256('\0'.join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Model and instruction sets."""
    try:
        lines = Path('/proc/cpuinfo').read_text(encoding='utf-8').split('\n\n')[0].splitlines()
    except OSError:
        return platform.machine() + platform.processor()
    names = ('model', 'flags', 'Features', 'CPU part')
    return platform.machine() + ''.join(line for line in lines if line.startswith(names))


def _compile(compiler: list[str], folder: Path) -> Path:
    unlinked, linked = folder / 'kernels.o', folder / 'kernels.so'
    _output([*compiler, *FLAGS, '-c', str(SOURCE), '-o', str(unlinked)])
    _output([*compiler, *LINK_FLAGS, str(unlinked), '-o', str(linked)])
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
