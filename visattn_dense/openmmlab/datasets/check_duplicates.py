"""Find images of the training data among the images of the evaluation: copies, and near copies.

An image becomes a short vector: the differences between neighbours in a grey thumbnail. Their
square roots, with the sign kept, let faint structures count beside strong edges. The similarity of
two images is the cosine of the angle between their vectors, -1 to 1.

Measured on CamVid, COCO and rendered scenes: two different images had at most 0.46; an image and
its copy with other JPEG quality, half the size, other brightness or contrast, a bar over a corner,
or 2 % cut off at each side had at least 0.80. A mirrored copy, or a part of an image, is not found.
"""
from __future__ import annotations

import filecmp
from collections.abc import Sequence

import numpy as np
from PIL import Image

from visattn_dense.files import spread
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

THUMBNAIL = 17
"""Side of the thumbnail."""
ALIKE = 0.7
"""From this similarity on, two images are near copies."""
# To compare more pairs takes more than about two minutes on one core.
_MOST_PAIRS = 2 * 10**9
_AT_ONCE = 2**24
_PALETTES = ('1', 'P', 'PA')


def fingerprint(image: Image.Image) -> np.ndarray | None:
    """The vector of an image, (544,) float16 of length 1; None for an image of one value."""
    if image.mode in _PALETTES:
        image = image.convert('L')
    elif image.mode[0] in 'IF':
        # More than 8 bits: the range is unknown, and does not matter.
        image = Image.fromarray(np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0))
    small = np.asarray(image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), np.float32)
    # The mean of the bands: Pillow does not turn every mode into grey.
    grey = small.mean(axis=2) if small.ndim == 3 else small
    steps = np.concatenate([np.diff(grey, axis=axis).ravel() for axis in (0, 1)])
    steps = np.sign(steps) * np.sqrt(np.abs(steps))
    length = np.linalg.norm(steps)
    return (steps / length).astype(np.float16) if length else None


def report_duplicates(reports: Sequence[DatasetReport]) -> None:
    """Compare the training images with those of the other splits; each such split gets its report.

    Args:
        reports: of one config, with `DatasetReport.fingerprints`.
    """
    known = {path: vector for report in reports if report.split == 'train'
             for path, vector in report.fingerprints.items()}
    for report in reports:
        if report.split == 'train' or not (known and report.fingerprints):
            continue
        paths = list(known)
        most = max(1, _MOST_PAIRS // len(report.fingerprints))
        if len(paths) > most:
            paths = spread(paths, max(2, most))
            report.notes.append(f'compared with {len(paths)} of the {len(known)} training images: '
                                'to compare all would take many minutes')
        same, near = [], []
        for path, twin, alike in _nearest(report.fingerprints, {p: known[p] for p in paths}):
            if path == twin or filecmp.cmp(path, twin, shallow=False):
                same.append(f'{path} = {twin}')
            else:
                near.append((alike, f'{path} ~ {twin}'))
        if same:
            report.add('images that are training images too', 'remove them from one of the two: '
                       'a score on images that were learned says nothing about new ones', same,
                       blocks=False)
        if near:
            shown = ', '.join(pair for _, pair in sorted(near, reverse=True)[:5])
            report.notes.append(
                f'{len(near)} image{"s look" if len(near) > 1 else " looks"} nearly like a '
                'training image; copies, or neighbours in one film, make the score too good: '
                f'{shown}{", ..." if len(near) > 5 else ""}')


def _nearest(some: dict[str, np.ndarray], others: dict[str, np.ndarray],
             ) -> list[tuple[str, str, float]]:
    """(path, most similar path of `others`, similarity) of the images that have a near copy."""
    table = np.stack(list(others.values())).astype(np.float32)
    names, paths, found = list(others), list(some), []
    step = max(1, _AT_ONCE // len(names))
    for start in range(0, len(paths), step):
        part = paths[start:start + step]
        alike = np.stack([some[path] for path in part]).astype(np.float32) @ table.T
        for path, at, value in zip(part, alike.argmax(axis=1), alike.max(axis=1), strict=True):
            if value >= ALIKE:
                found.append((path, names[at], float(value)))
    return found
