"""What a checkpoint file is, from its bytes alone: before anything in it is built.

torch.save writes a zip archive whose records are stored as they are, or (before torch 1.6) a chain
of pickles; safetensors a header of JSON and the bytes of the tensors.
"""
import json
import os
import zipfile
from pathlib import Path

from visattn_dense.errors import UserError

# safetensors' own limit for its header.
_HEADER_LIMIT = 100_000_000


def file_format(path: str | os.PathLike) -> str:
    """'zip' (torch.save), 'pickle' (torch.save before 1.6), 'safetensors', or what else it is.

    What else it can be: 'empty', 'web page', 'text', 'tar', 'unknown'.
    """
    with open(path, 'rb') as file:
        head = file.read(512)
    if not head:
        return 'empty'
    if head.startswith(b'PK\x03\x04'):
        return 'zip'
    if head[257:262] == b'ustar':
        return 'tar'
    # A pickle of protocol 2 or later opens with this byte and the protocol's number.
    if head[0] == 0x80 and 2 <= head[1] <= 5:
        return 'pickle'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= _HEADER_LIMIT:
        return 'safetensors'
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'web page'
    return 'text' if all(byte in b'\t\n\r' or 32 <= byte < 127 for byte in head) else 'unknown'


def check_is_checkpoint(path: str | os.PathLike) -> str:
    """The format of a checkpoint, after its own account of its size was checked. Builds nothing.

    Raises:
        UserError: it is no checkpoint, is cut off, or unpacks to more than it is.
    """
    path, size = Path(path), os.path.getsize(path)
    kind = file_format(path)
    if kind == 'zip':
        _check_zip(path, size)
    elif kind == 'safetensors':
        _check_safetensors(path, size)
    elif kind != 'pickle':
        what = {'empty': 'is empty', 'web page': 'is a web page, not a file of weights',
                'text': 'is text, not weights (of a Git LFS pointer, fetch the file itself)',
                'tar': "is a tar archive: torch's format before 0.1.10, or a packed folder; "
                       'unpack it first'}
        raise UserError(f'{path.name} is damaged or is no checkpoint: it '
                        f'{what.get(kind, "has no format that torch or safetensors writes")} '
                        f'({size:,} bytes)')
    return kind


def _check_zip(path: Path, size: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise UserError(f'{path.name} is damaged: the archive has no end ({size:,} bytes; '
                        f'{error}); it is cut off, download or copy it again') from error
    unpacked = sum(record.file_size for record in records)
    # torch.save stores; only somebody else compresses, or lets records share their bytes.
    if unpacked > size or any(record.compress_type for record in records):
        raise UserError(f'{path.name} was refused: its {size:,} bytes unpack to {unpacked:,}, and '
                        'what torch.save writes is not compressed. If you trust it, unpack and '
                        'repack it without compression')


def _check_safetensors(path: Path, size: int) -> None:
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        header = file.read(length)
    try:
        entries = json.loads(header)
        end = max((entry['data_offsets'][1] for name, entry in entries.items()
                   if name != '__metadata__'), default=0)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise UserError(f'{path.name} is damaged: its header cannot be read ({size:,} bytes); '
                        'download or copy it again') from error
    if size != 8 + length + end:
        raise UserError(f'{path.name} is damaged: its header asks for {8 + length + end:,} bytes, '
                        f'it has {size:,}; download or copy it again')
