"""Pair predictions with labels, and report all faults of the two folders in one message.

Only the heads of the files are read here, so a check of thousands of files takes about a second.
"""
from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from visattn_dense.errors import UserError, few
from visattn_dense.files import list_files, read_all
from visattn_dense.images import LOSSY, opened

# Modes that hold one integer for each pixel; 'P' holds indices into a palette.
INDEX_MODES = ('1', 'L', 'P', 'I', 'I;16', 'I;16B', 'I;16L')
_SHOWN = 5


@dataclass(frozen=True)
class Pair:
    """One image and its two files. name: without suffix; without folder unless two are alike."""

    name: str
    prediction: str
    label: str


def read_index_map(path: str) -> np.ndarray:
    """The values of a label PNG, (H, W), uint8 or uint16. A palette file gives the indices.

    Raises:
        UserError: the file cannot be read, or holds colours or values that do not fit 16 bits.
    """
    try:
        with opened(path) as image:
            mode, kind, values = image.mode, image.format, np.asarray(image)
    except OSError as error:
        raise UserError(f'{path} cannot be read: {error}') from error
    if mode not in INDEX_MODES:
        raise UserError(f'{path} is a colour picture ({mode}); a label file holds one class index '
                        'for each pixel')
    if kind in LOSSY:
        raise UserError(f'{path} is a JPEG, which changes class indices; write label files as PNG')
    if values.dtype == bool:
        # A view would show Pillow's bytes, which are 255 for True.
        return values.astype(np.uint8)
    if values.dtype in (np.uint8, np.uint16):
        return values
    if values.min(initial=0) < 0 or values.max(initial=0) > 65535:
        raise UserError(f'{path} holds values from {values.min()} to {values.max()}; class '
                        'indices are 0..65535')
    return values.astype(np.uint16)


def match_files(pred_dir: str | os.PathLike, label_dir: str | os.PathLike, *,
                pred_suffix: str = '.png', label_suffix: str = '.png',
                workers: int = 1) -> list[Pair]:
    """Pair the files of two folders (and the folders below them) by name without suffix.

    Args:
        pred_dir, label_dir: folders of label PNGs.
        pred_suffix, label_suffix: ending of the file names; other files are ignored.
        workers: threads that read the heads of the files.

    Raises:
        UserError: a folder is missing or empty; a label has no prediction; a prediction has no
            label; the files of a pair differ in size; a file is not a label picture. The message
            has all faults.
    """
    predictions = _by_name(pred_dir, pred_suffix, 'predictions')
    labels = _by_name(label_dir, label_suffix, 'labels')
    problems = []
    if missing := sorted(labels.keys() - predictions.keys()):
        problems.append(f'{len(missing)} of {len(labels)} labels have no prediction in '
                        f'{pred_dir}: {few(name + pred_suffix for name in missing)}')
    if extra := sorted(predictions.keys() - labels.keys()):
        problems.append(f'{len(extra)} of {len(predictions)} predictions have no label in '
                        f'{label_dir}: {few(name + pred_suffix for name in extra)}')
    pairs = [Pair(name, predictions[name], labels[name])
             for name in sorted(labels.keys() & predictions.keys())]
    if not pairs:
        problems.append(f'no name is in both folders; compare {min(predictions)}{pred_suffix} with '
                        f'{min(labels)}{label_suffix}, and see --pred-suffix and --label-suffix')
    faults = [fault for fault in read_all(_fault, pairs, workers=workers) if fault]
    if faults:
        problems.append(f'{len(faults)} of {len(pairs)} pairs do not fit:\n    '
                        + '\n    '.join(faults[:_SHOWN])
                        + ('\n    ...' if len(faults) > _SHOWN else ''))
    if problems:
        raise UserError('the folders do not fit together:\n  ' + '\n  '.join(problems))
    return pairs


def _by_name(folder: str | os.PathLike, suffix: str, what: str) -> dict[str, str]:
    if not Path(folder).is_dir():
        raise UserError(f'there is no folder of {what} {folder}')
    found: dict[str, str] = {}
    for relative in list_files(os.fspath(folder), suffix):
        name = os.path.basename(relative).removesuffix(suffix)
        path = os.path.join(folder, relative)
        if name in found:
            raise UserError(f'{found[name]} and {path} have the same name; {what} are told apart '
                            'by file name only')
        found[name] = path
    if not found:
        raise UserError(f'{folder} holds no {what}: no file there ends in {suffix!r}')
    return found


def _fault(pair: Pair) -> str | None:
    sizes = []
    for path in (pair.prediction, pair.label):
        try:
            with opened(path, decode=False) as image:
                mode, size = image.mode, image.size
        except OSError as error:
            return f'{path} cannot be read: {error}'
        if mode not in INDEX_MODES:
            return (f'{path} is a colour picture ({mode}); a label file holds one class index for '
                    'each pixel')
        sizes.append(size)
    (width, height), (label_width, label_height) = sizes
    if sizes[0] != sizes[1]:
        return (f'{pair.prediction} is {width}x{height}, {pair.label} is '
                f'{label_width}x{label_height} pixels (predictions must have the size of the '
                'original image)')
    return None
