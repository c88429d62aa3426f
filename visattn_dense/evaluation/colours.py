"""Masks that hold colours to label maps that hold class indices, without loss unless asked.

A colour table is a text file with a line for each class, in the order of the indices: the colour as
`#rrggbb` or as three numbers, then the name. Colours of one name are one class. The name `-` stands
for pixels that are not judged.
"""
from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visattn_dense.errors import UserError, few
from visattn_dense.images import opened

IGNORED = 255
NOT_JUDGED = '-'
_LINE = re.compile(r'(?:#([0-9a-fA-F]{6})|(\d+)[\s,]+(\d+)[\s,]+(\d+))[\s,]+(\S.*)')
MOST_COLOURS = 4096
"""A folder with more colours than this holds photographs, or masks with blurred edges."""


@dataclass(frozen=True)
class ColourTable:
    """codes: (N,) colours as 0xRRGGBB; values: (N,) the index of each; names: of the classes, each
    once."""

    codes: np.ndarray
    values: np.ndarray
    names: Sequence[str]


def read_table(path: str | os.PathLike) -> ColourTable:
    """A colour table from its file.

    Raises:
        UserError: the file cannot be read, a line is no colour and name, or a colour comes twice.
    """
    try:
        lines = Path(path).read_text(encoding='utf-8-sig').splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'the colour table {path} cannot be read: {error}') from error
    codes, values, names = [], [], []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line.strip())
        parts = [int(part) for part in match.groups()[1:4] if part] if match else [256]
        if any(part > 255 for part in parts):
            raise UserError(f'{path}, line {number}: {line.strip()!r} is no colour and name; write '
                            '"#rrggbb name" or "r g b name"')
        code = int(match[1], 16) if match[1] else (parts[0] << 16) + (parts[1] << 8) + parts[2]
        if code in codes:
            raise UserError(f'{path}, line {number}: the colour {shown(code)} comes a second time')
        codes.append(code)
        if match[5] == NOT_JUDGED:
            values.append(IGNORED)
            continue
        if match[5] not in names:
            names.append(match[5])
        values.append(names.index(match[5]))
    if not names:
        raise UserError(f'the colour table {path} names no class')
    if len(names) > IGNORED:
        raise UserError(f'{path} names {len(names)} classes; 8 bits hold {IGNORED}, and 255 for '
                        'pixels that are not judged')
    return ColourTable(np.array(codes), np.array(values, np.uint8), names)


def read_codes(path: str | os.PathLike) -> np.ndarray:
    """(H, W) int32 colours of a picture as 0xRRGGBB; a palette is followed.

    Raises:
        UserError: the file cannot be read, or has grey values above 255.
    """
    try:
        with opened(path) as image:
            if image.mode[0] in 'IF' and image.getextrema()[1] > 255:
                raise UserError(f'{path} holds grey values up to {image.getextrema()[1]:g}, and '
                                'colours end at 255. Class indices need no conversion: save them '
                                'with 8 bits')
            colours = np.asarray(image.convert('RGB'), np.int32)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    return (colours[..., 0] << 16) + (colours[..., 1] << 8) + colours[..., 2]


def to_index(codes: np.ndarray, table: ColourTable, reach: float = 0.) -> tuple[np.ndarray, int]:
    """Colours to class indices.

    Args:
        codes: (H, W) from `read_codes`.
        table: which colour stands for which index.
        reach: a colour outside the table counts as the nearest one of the table, at most this far
            (Euclidean, in steps of 0..255); 0: no such colour.

    Returns:
        (H, W) uint8 indices; how many pixels took another colour's index.

    Raises:
        UserError: a colour is not in the table and too far from each in it.
    """
    found, inverse, counts = np.unique(codes, return_inverse=True, return_counts=True)
    nearest, away = np.zeros(len(found), int), np.full(len(found), np.inf)
    # One class at a time: a JPEG may have a million colours.
    for at, colour in enumerate(_parts(table.codes)):
        distance = np.linalg.norm(_parts(found) - colour, axis=1)
        nearest[distance < away] = at
        away = np.minimum(away, distance)
    if (far := away > reach).any():
        worst = np.flatnonzero(far)[np.argsort(-counts[far], kind='stable')]
        raise UserError(f'{counts[far].sum()} of {codes.size} pixels have {far.sum()} colours that '
                        'are not in the table: '
                        + few(f'{shown(found[i])} ({counts[i]} pixels)' for i in worst))
    return (table.values[nearest][inverse].reshape(codes.shape), int(counts[away > 0].sum()))


def shown(code: int) -> str:
    """A colour as '#rrggbb'."""
    return f'#{int(code):06x}'


def _parts(codes: np.ndarray) -> np.ndarray:
    """(N,) codes to (N, 3) red, green, blue."""
    return np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=-1).astype(np.float64)
