"""Reading a checkpoint file or address without ever executing code from it."""
import argparse
import collections
import importlib
import os
import pathlib
import pickle
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visattn_dense.errors import UserError

from .archive import check_is_checkpoint
from .download import download
from .zoo import SCHEME, find_release


class Settings:
    """In place of a settings object that a training script left beside the weights.

    What is built is a plain dict: torch's unpickler sets entries of nothing else.
    """

    def __new__(cls, *_: object) -> collections.OrderedDict:
        return collections.OrderedDict()


def _named(function: Any, module: str, name: str) -> Any:
    """A function or class that a pickle finds as `module.name`."""
    if isinstance(function, type):
        return type(name, (function,), {'__module__': module, '__qualname__': name})

    def renamed(*args: object) -> object:
        return function(*args)

    renamed.__module__, renamed.__name__, renamed.__qualname__ = module, name, name
    return renamed


_SCALAR = (np._core if hasattr(np, '_core') else np.core).multiarray.scalar
# Plain containers and values that the authors' training scripts left beside the weights. torch's
# weights-only unpickler builds these and refuses every other class; NumPy 1 and 2 disagree on where
# `scalar` lives.
_HARMLESS = [
    argparse.Namespace, collections.defaultdict, pathlib.PosixPath, pathlib.PurePosixPath,
    np.ndarray, np.dtype, *{type(np.dtype(kind)) for kind in ('f8', 'f4', 'f2', 'i8', 'i4', 'u1',
                                                              'b1')},
    _named(_SCALAR, 'numpy.core.multiarray', 'scalar'),
    _named(_SCALAR, 'numpy._core.multiarray', 'scalar'),
    _named(Settings, 'yacs.config', 'CfgNode'),
]


def resolve(source: str | os.PathLike) -> Path:
    """The file that a path, an http(s) address or 'visattn://NAME' stands for, downloaded if need.

    Raises:
        FileNotFoundError: no such file; near names of the folder are given.
        UserError: the download failed, or the zoo has no such name; see `download`.
    """
    text = os.fspath(source)
    if text.startswith(SCHEME):
        return find_release(text).fetch()
    if text.lower().startswith(('http://', 'https://')):
        return download(text)
    path = Path(text).expanduser()
    if not path.is_file():
        raise FileNotFoundError(_missing_message(path))
    return path


def read_checkpoint(source: str | os.PathLike, *, trust: bool = False, mmap: bool = False) -> Any:
    """What a checkpoint holds, its tensors on the CPU.

    Args:
        source: a file (torch's zip or legacy format, or safetensors), an http(s) address, which is
            downloaded once into torch's cache (`torch.hub.get_dir()`/checkpoints), or
            'visattn://NAME', an entry of the model zoo.
        trust: build every object in the file, which executes the code that the file brings.
        mmap: leave the bytes of the tensors in the file until they are looked at. Such tensors are
            only good as long as nobody writes to the file.

    Returns:
        The contents: usually a dict of tensors, or a dict that wraps one.

    Raises:
        FileNotFoundError, UserError: see `resolve`.
        UserError: the file is damaged or no checkpoint, unpacks to more than it is, or holds
            objects other than tensors and plain containers, which are not built.
    """
    path = resolve(source)
    kind = check_is_checkpoint(path)
    try:
        if kind == 'safetensors':
            from safetensors.torch import load_file
            return load_file(path)
        mmap = mmap and kind == 'zip'
        if trust:
            contents = torch.load(path, map_location='cpu', weights_only=False, mmap=mmap)
        else:
            contents = _load_harmless(path, mmap)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal_message(path, error)) from error
    except Exception as error:
        # torch raises RuntimeError, EOFError, KeyError, ... according to where the damage is.
        raise UserError(f'{path} is damaged or is no checkpoint ({path.stat().st_size:,} bytes; '
                        f'{type(error).__name__}: {error}); download or copy it again') from error
    _check_tensors(contents, path)
    return contents


def _load_harmless(path: Path, mmap: bool) -> Any:
    def load() -> Any:
        # Leaving the context takes its entries out again, also those that stood there before.
        allowed = torch.serialization.get_safe_globals()
        with torch.serialization.safe_globals([c for c in _HARMLESS if c not in allowed]):
            return torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)

    try:
        return load()
    except pickle.UnpicklingError as error:
        # What mmengine's own runs leave behind is let through by a mend of its loader.
        if 'mmengine.' not in str(error):
            raise
        try:
            importlib.import_module('mmengine.runner.checkpoint')
        except ImportError:
            raise error from None
        return load()


def _check_tensors(contents: Any, path: Path, depth: int = 4) -> None:
    """No tensor claims more bytes than the whole file has, by sharing them among its entries."""
    values = contents.items() if isinstance(contents, Mapping) and depth else ()
    for name, value in values:
        if not isinstance(value, Tensor):
            _check_tensors(value, path, depth - 1)
        elif value.layout is not torch.strided:
            raise UserError(f'{path}: {name} is a {value.layout} tensor; weights are dense')
        elif (claimed := value.numel() * value.element_size()) > max(
                path.stat().st_size, value.untyped_storage().nbytes()):
            raise UserError(f'{path} was refused: {name} of {tuple(value.shape)} claims '
                            f'{claimed:,} bytes, and the file has '
                            f'{value.untyped_storage().nbytes():,} for it')


def _missing_message(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f'no checkpoint {path}: the folder {folder} does not exist'
    near = get_close_matches(path.name, [p.name for p in folder.iterdir()], n=3)
    return f'no checkpoint {path}' + (f'; the folder has {", ".join(near)}' if near else '')


def _refusal_message(path: Path, error: Exception) -> str:
    text = str(error)
    if 'Unsupported' not in text and 'GLOBAL' not in text:
        return (f'{path} is damaged or is no checkpoint ({path.stat().st_size:,} bytes; {text}); '
                'download or copy it again')
    reason = next((line.strip() for line in text.splitlines() if 'GLOBAL' in line), text)
    return (f'{path} holds more than tensors and plain containers, and nothing of it was executed: '
            f'{reason} If you trust its origin, `python -m visattn_dense.checkpoints convert '
            '--trust` makes a file of the weights alone.')
