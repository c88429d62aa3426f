"""The one reader of checkpoints. Reading never executes code from a file.

All code that takes a checkpoint calls `read_checkpoint`: load_pretrained and init_cfg, load_from,
--resume, the tools, the command of the zoo, the Hub, timm, and mmengine's own `load_checkpoint`.
docs/security.md says what the reader promises.
"""
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from visattn_dense.errors import MissingFileError, UserError, did_you_mean

from .addresses import fetcher
from .archive import Record, check_is_checkpoint, zip_records
from .download import download
from .pickled import DTYPES, NotHeld, PickleReader, Refused, Storage, TooLarge, storage_dtype

_SUFFIXES = ('.pth', '.pt', '.tar', '.bin', '.safetensors')
# The first pickle in a file that torch.save wrote before 1.6.
_LEGACY_MAGIC = 0x1950a86a20f9469cfc6c
# Tensors may share bytes: together they may claim this many bytes more than twice the file has.
_SHARED = 64 << 20
_TO_TRUST = ('If you trust its origin, `python -m visattn_dense.zoo convert --trust` makes '
             'a file of the weights alone.')


def resolve(source: str | os.PathLike) -> Path:
    """The file for a path, an http(s) address or 'visattn://NAME', downloaded if necessary.

    Raises:
        MissingFileError: no such file. The message has similar names from the folder.
        UserError: the download failed, or the zoo has no such name; see `download`.
    """
    text = os.fspath(source)
    if fetch := fetcher(text):
        return fetch(text)
    if text.lower().startswith(('http://', 'https://')):
        return download(text)
    path = Path(text).expanduser()
    try:
        found = path.is_file()
    except (OSError, ValueError) as error:
        raise MissingFileError(f'no checkpoint {ascii(text)[:200]}: {error}') from error
    if not found:
        raise MissingFileError(_missing_message(path))
    return path


def read_checkpoint(source: str | os.PathLike, *, trust: bool = False, mmap: bool = False) -> Any:
    """The contents of a checkpoint, with tensors on the CPU.

    The structure of the file, its checksums and every size in the file are checked before memory is
    allocated. Reading takes at most twice the size of the file and 200 MB more. Contents are dicts,
    lists, tuples, text, numbers, arrays and dense tensors, without cycles.

    Args:
        source: a file (torch's zip or legacy format, or safetensors), an http(s) address, which is
            downloaded once into torch's cache (`torch.hub.get_dir()`/checkpoints), or
            'visattn://NAME', an entry of the model zoo.
        trust: build every object in the file. This executes code from the file.
        mmap: leave the bytes of the tensors in the file until they are read. Such tensors are valid
            only while nobody writes to the file.

    Returns:
        The contents: usually a dict of tensors, or a dict that contains such a dict. Objects of the
        few classes that authors' training scripts saved with the weights become
        `pickled.Attributes`.

    Raises:
        MissingFileError, UserError: see `resolve`.
        UserError: the file is damaged, is not a checkpoint, unpacks to more than its size, or holds
            objects other than tensors and plain containers. Such objects are not built.
    """
    path = resolve(source)
    try:
        kind = check_is_checkpoint(path)
        if kind == 'safetensors':
            return _read_safetensors(path)
        if trust:
            return torch.load(path, map_location='cpu', weights_only=False,
                              mmap=mmap and kind == 'zip')
        return _read_zip(path, mmap) if kind == 'zip' else _read_legacy(path)
    except UserError:
        raise
    except NotHeld as error:
        raise UserError(f'{path} holds {error}; weights are dense tensors of '
                        f'{", ".join(DTYPES)}. Convert the file first') from error
    except TooLarge as error:
        raise UserError(f'{path} was refused: {error}') from error
    except Refused as error:
        raise UserError(f'{path} holds more than tensors and plain containers, and nothing of it '
                        f'was executed: {error}. {_TO_TRUST}') from error
    except Exception as error:
        # Damage raises ValueError, KeyError, IndexError, ..., depending on its place in the file.
        raise UserError(f'{path} is damaged or is no checkpoint ({path.stat().st_size:,} bytes; '
                        f'{type(error).__name__}: {str(error)[:200]}); download or copy it again'
                        ) from error


def _read_zip(path: Path, mmap: bool) -> Any:
    records = zip_records(path)
    pickles = [name for name in records if name.rpartition('/')[2] == 'data.pkl']
    if len(pickles) != 1:
        raise UserError(f'{path} is a zip archive, and no checkpoint: it has {len(pickles)} '
                        'records called data.pkl')
    root = pickles[0].removesuffix('data.pkl')
    with open(path, 'rb') as file:
        if (order := records.get(f'{root}byteorder')) and _bytes(file, order) != b'little':
            raise UserError(f'{path} was written on a big-endian machine; load it and save it '
                            'again on a little-endian one')
        storages = _ZipStorages(path, file, {
            name.removeprefix(f'{root}data/'): record for name, record in records.items()
            if name.startswith(f'{root}data/')}, mmap)
        reader = PickleReader(records[pickles[0]].size, storages.find,
                              limit=2 * path.stat().st_size + _SHARED)
        file.seek(records[pickles[0]].offset)
        contents = reader.read(file)
        storages.load()
    return reader.finish(contents)


def _bytes(file: Any, record: Record) -> bytes:
    file.seek(record.offset)
    return file.read(record.size)


class _ZipStorages:
    """The storages of a zip file. Each is made once, after all names were checked."""

    def __init__(self, path: Path, file: Any, records: Mapping[str, Record], mmap: bool) -> None:
        self._path, self._file, self._records, self._mmap = path, file, records, mmap
        self._found: dict[str, Storage] = {}

    def find(self, persistent: Any) -> Storage:
        dtype, key, size = _storage_id(persistent)
        if key not in self._records or self._records[key].size < size:
            raise ValueError(f'it has no {size:,} bytes for the tensor storage {key!r}')
        return _same(self._found.setdefault(key, Storage(dtype, size)), dtype, size)

    def load(self) -> None:
        whole = (torch.UntypedStorage.from_file(str(self._path), False, self._path.stat().st_size)
                 if self._mmap and self._found else None)
        for key, storage in self._found.items():
            start = self._records[key].offset
            # The address of a number has to be a multiple of its size.
            if whole is not None and storage.size and start % 8 == 0:
                storage.bytes = whole[start:start + storage.size]
            else:
                self._file.seek(start)
                storage.bytes = _read_storage(self._file, storage.size)


def _storage_id(persistent: Any) -> tuple[torch.dtype, str, int]:
    """dtype, key and bytes of a storage, which torch writes as ('storage', class, key, location,
    count)."""
    if not (isinstance(persistent, tuple) and len(persistent) >= 5 and persistent[0] == 'storage'
            and isinstance(persistent[2], str) and type(persistent[4]) is int
            and persistent[4] >= 0):
        raise Refused('a persistent object that is no tensor storage')
    dtype = storage_dtype(persistent[1])
    return dtype, persistent[2], persistent[4] * dtype.itemsize


def _same(storage: Storage, dtype: torch.dtype, size: int) -> Storage:
    if (storage.dtype, storage.size) != (dtype, size):
        raise ValueError(f'its tensors disagree on a storage: {storage.dtype} of '
                         f'{storage.size:,} bytes, {dtype} of {size:,}')
    return storage


def _read_storage(file: Any, size: int) -> torch.UntypedStorage:
    storage = torch.empty(size, dtype=torch.uint8)
    if size and file.readinto(storage.numpy()) != size:
        raise ValueError('it ends inside a tensor')
    return storage.untyped_storage()


def _read_legacy(path: Path) -> Any:
    """torch.save before 1.6: four pickles, the list of storages, the bytes of each."""
    size = left = path.stat().st_size
    found: dict[str, Storage] = {}

    def find(persistent: Any) -> Storage:
        dtype, key, bytes_ = _storage_id(persistent)
        if len(persistent) > 5 and persistent[5] is not None:
            raise Refused('a storage that is a view of another')
        nonlocal left
        if key not in found:
            left -= bytes_
            if left < 0:
                raise ValueError(f'its tensors ask for more than its {size:,} bytes')
            found[key] = Storage(dtype, bytes_)
        return _same(found[key], dtype, bytes_)

    with open(path, 'rb') as file:
        reader = PickleReader(size, find, limit=2 * size + _SHARED)
        plain = PickleReader(size)
        if plain.read(file) != _LEGACY_MAGIC:
            raise UserError(f'{path} is a pickle, but not one that torch.save wrote. Save the '
                            'weights with torch.save or as safetensors')
        protocol, system = plain.read(file), plain.read(file)
        if protocol != 1001 or not isinstance(system, dict) or not system.get('little_endian'):
            raise ValueError(f'its format {protocol!r} of a machine {system!r} is not known')
        contents = reader.read(file)
        keys = plain.read(file)
        if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(found):
            raise ValueError('its list of storages is not that of its tensors')
        for key in keys:
            storage = found[key]
            count = int.from_bytes(file.read(8), 'little')
            if count * storage.dtype.itemsize != storage.size:
                raise ValueError(f'storage {key!r} has {count} numbers, its tensors say otherwise')
            storage.bytes = _read_storage(file, storage.size)
    return reader.finish(contents)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework='pt') as file:
            out = {}
            for name in file.keys():  # noqa: SIM118  (safe_open is no mapping)
                tensor = file.get_tensor(name)
                if (dtype := str(tensor.dtype).removeprefix('torch.')) not in DTYPES:
                    raise NotHeld(f'{dtype} tensors')
                out[name] = tensor
            return out
    except SafetensorError as error:
        raise UserError(f'{path} is damaged: {error}; download or copy it again') from error


def _missing_message(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f'no checkpoint {path}: the folder {folder} does not exist'
    if path.is_dir():
        return f'no checkpoint {path}: it is a folder; name the file in it'
    there = [p.name for p in folder.iterdir() if p.suffix in _SUFFIXES]
    return f'no checkpoint {path}. {did_you_mean(path.name, there)}'.rstrip()
