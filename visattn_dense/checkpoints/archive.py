"""Find the format of a checkpoint file from its bytes, before anything in the file is built.

torch.save writes a zip archive with uncompressed records; before torch 1.6 it wrote a chain of
pickles. A safetensors file is a header of JSON and the bytes of the tensors.
"""
import json
import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from visattn_dense.errors import UserError

# A header of JSON, or a zip directory, takes many times its size in memory; this is room for
# 25,000 tensors.
_HEADER_LIMIT = 4 << 20
_BLOCK = 1 << 20
_LOCAL_HEADER = struct.Struct('<4s5H3I2H')
_END = b'PK\x05\x06' + bytes(18)
# Before the end record of a large archive: its record of 56 bytes with longer numbers, its locator.
_END64 = 56 + 20 + len(_END)
# A record may be followed by its checksum and sizes once more (APPNOTE 4.3.9).
_DESCRIPTOR = 24


@dataclass(frozen=True)
class Record:
    """The bytes of one record of a zip archive: `size` bytes from `offset` of the file."""

    offset: int
    size: int


def file_format(path: str | os.PathLike) -> str:
    """The format: 'zip' (torch.save), 'pickle' (torch.save before 1.6) or 'safetensors'.

    A file that is not a checkpoint gives 'empty', 'web page', 'text', 'tar' or 'unknown'.
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
    if head[0] == 0x80 and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'pickle'
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= os.path.getsize(path):
        return 'safetensors'
    text = head.lstrip().lower()
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'web page'
    return 'text' if all(byte in b'\t\n\r' or 32 <= byte < 127 for byte in head) else 'unknown'


def check_is_checkpoint(path: str | os.PathLike) -> str:
    """The format of a checkpoint, after its structure was checked. Builds nothing.

    A zip archive is read once from end to end, for the checksum of every record. The other formats
    have no checksums.

    Raises:
        UserError: the file is not a checkpoint, is truncated or damaged, or unpacks to more than
            its size.
    """
    path = Path(path)
    kind = file_format(path)
    if kind == 'zip':
        zip_records(path)
    elif kind == 'safetensors':
        _check_safetensors(path, path.stat().st_size)
    elif kind != 'pickle':
        what = {'empty': 'is empty', 'web page': 'is a web page, not a file of weights',
                'text': 'is text, not weights (of a Git LFS pointer, fetch the file itself)',
                'tar': "is a tar archive: torch's format before 0.1.10, or a packed folder; "
                       'unpack it first'}
        raise UserError(f'{path} is damaged or is no checkpoint: it '
                        f'{what.get(kind, "has no format that torch or safetensors writes")} '
                        f'({path.stat().st_size:,} bytes)')
    return kind


def zip_records(path: str | os.PathLike) -> dict[str, Record]:
    """The records of an archive that torch.save wrote, each with its checksum verified.

    The records must lie one after the other from the first byte on. One directory and the end of
    the file must follow. So there is only one way to read the archive.

    Raises:
        UserError: the archive is damaged, or torch.save never writes such a layout.
    """
    path = Path(path)
    size = path.stat().st_size
    with open(path, 'rb') as file:
        file.seek(max(0, size - _END64))
        last = file.read()
    # The end record of the archive is the end of the file: no comment, nothing after it.
    if last[-22:-18] != _END[:4] or last[-2:] != _END[-2:]:
        raise UserError(f'{path} is damaged: the archive has no end, or bytes after its end '
                        f'({size:,} bytes); it is cut off, or not whole: download or copy it again')
    length = _directory_size(last)
    if length > _HEADER_LIMIT:
        raise UserError(f'{path} was refused: the directory of its records, {length:,} bytes, is '
                        f'longer than {_HEADER_LIMIT:,}, which is room for 25,000 tensors')
    try:
        with zipfile.ZipFile(path) as archive:
            entries, directory = archive.infolist(), archive.start_dir
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError, struct.error) as error:
        raise UserError(f'{path} is damaged: the archive cannot be read ({size:,} bytes; '
                        f'{error}); download or copy it again') from error
    if any(entry.filename.endswith('/constants.pkl') for entry in entries):
        raise UserError(f'{path} is a TorchScript program, not a checkpoint; save the state_dict() '
                        'of the model')
    unpacked = sum(entry.file_size for entry in entries)
    # torch.save neither compresses records nor lets them share bytes.
    if unpacked > size or any(entry.compress_type for entry in entries):
        raise UserError(f'{path} was refused: its {size:,} bytes unpack to {unpacked:,}, and '
                        'what torch.save writes is not compressed. If you trust it, unpack and '
                        'repack it without compression')
    records: dict[str, Record] = {}
    end = 0
    with open(path, 'rb') as file:
        for entry in sorted(entries, key=lambda entry: entry.header_offset):
            offset = _data_offset(file, entry)
            if (offset is None or entry.filename in records or entry.flag_bits & 0x1
                    or not 0 <= entry.header_offset - end <= _DESCRIPTOR):
                raise UserError(f'{path} was refused: its record {entry.filename!r} does not '
                                'follow the one before, as it does in what torch.save writes. '
                                'Download or copy the file again')
            end = offset + entry.file_size
            records[entry.filename] = Record(offset, entry.file_size)
        if not entries or not 0 <= directory - end <= _DESCRIPTOR:
            raise UserError(f'{path} was refused: it has bytes after its records that are no part '
                            'of the archive, which torch.save never leaves. Download or copy the '
                            'file again')
        # torch.serialization.set_crc32_options(False) leaves zeros for all of them.
        for entry in entries if any(entry.CRC for entry in entries) else ():
            if _crc32(file, records[entry.filename]) != entry.CRC:
                raise UserError(f'{path} is damaged: wrong checksum of {entry.filename} '
                                f'({size:,} bytes); download or copy it again')
    return records


def _directory_size(last: bytes) -> int:
    """Bytes of an archive's directory, by the last `_END64` bytes of the file."""
    if last[:4] == b'PK\x06\x06' and last[56:60] == b'PK\x06\x07':
        return int.from_bytes(last[40:48], 'little')
    return int.from_bytes(last[-10:-6], 'little')


def _data_offset(file, entry: zipfile.ZipInfo) -> int | None:
    """Where an entry's bytes begin; None if the entry's own header contradicts the directory."""
    file.seek(entry.header_offset)
    head = file.read(_LOCAL_HEADER.size)
    if len(head) < _LOCAL_HEADER.size:
        return None
    signature, *_, name_length, extra_length = _LOCAL_HEADER.unpack(head)
    name = file.read(name_length)
    if signature != b'PK\x03\x04' or name.decode('utf-8', 'replace') != entry.orig_filename:
        return None
    return entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length


def _crc32(file, record: Record) -> int:
    file.seek(record.offset)
    total, left = 0, record.size
    while left and (block := file.read(min(left, _BLOCK))):
        total = zlib.crc32(block, total)
        left -= len(block)
    return total


def _check_safetensors(path: Path, size: int) -> None:
    with open(path, 'rb') as file:
        length = int.from_bytes(file.read(8), 'little')
        if length > _HEADER_LIMIT:
            raise UserError(f'{path} was refused: its header of {length:,} bytes is longer '
                            f'than {_HEADER_LIMIT:,}, which is room for 25,000 tensors')
        header = file.read(length)
    try:
        entries = json.loads(header)
        end = max((entry['data_offsets'][1] for name, entry in entries.items()
                   if name != '__metadata__'), default=0)
        whole = 8 + length + int(end)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError,
            RecursionError) as error:
        raise UserError(f'{path} is damaged: its header cannot be read ({size:,} bytes); '
                        'download or copy it again') from error
    if size != whole:
        raise UserError(f'{path} is damaged: its header asks for {whole:,} bytes, '
                        f'it has {size:,}; download or copy it again')
