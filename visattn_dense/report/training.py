"""What a run's folder tells: the curves of the training, the origin of data and versions."""
from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from visattn_dense.report import charts, page
from visattn_dense.report.html import Markup, element
from visattn_dense.visualization.curve import read_scalars

_LIBRARIES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmcv-lite', 'mmsegmentation', 'mmdet',
              'numpy', 'pillow', 'pycocotools')
# Losses of one training that share a chart.
_MOST_LOSSES = 6


def read_record(run: str | os.PathLike) -> list[dict[str, Any]]:
    """All entries that the trainings in a run's folder wrote, by time; [] where there are none.

    A training that was resumed has several records. Records of evaluations hold no losses and are
    left out.

    Raises:
        UserError: a record is damaged.
    """
    entries = []
    for path in sorted(Path(run).glob('*/vis_data/scalars.json')):
        record = read_scalars(path)
        if any('loss' in entry for entry in record):
            entries += record
    return entries


def training_section(entries: list[dict[str, Any]]) -> page.Section | None:
    """Charts of losses, validation scores and the learning rate; None without a record."""
    train = [entry for entry in entries if 'loss' in entry]
    if not train:
        return None
    names = ['loss', *sorted({key for entry in train for key in entry
                              if 'loss' in key and key != 'loss'})][:_MOST_LOSSES]
    found = [charts.lines([(name, _points(train, name)) for name in names], across='iteration',
                          up='loss')]
    scores = [name for name in ('mIoU', 'aAcc', 'coco/bbox_mAP', 'coco/segm_mAP')
              if any(name in entry for entry in entries)]
    if scores:
        found.append(charts.lines([(name, _points(entries, name)) for name in scores],
                                  across='iteration', up='validation', dots=True))
    if any('lr' in entry for entry in train):
        found.append(charts.lines([('learning rate', _points(train, 'lr'))], across='iteration',
                                  up='learning rate'))
    return page.Section('Training', '', element('div', found, class_='two'))


def _points(entries: list[dict[str, Any]], name: str) -> list[tuple[float, float]]:
    """Value over iteration; what a resumed training wrote again counts once."""
    points = {}
    for entry in entries:
        step, value = entry.get('step', entry.get('iter')), entry.get(name)
        if isinstance(step, (int, float)) and isinstance(value, (int, float)):
            points[float(step)] = float(value)
    return sorted(points.items())


def speed(entries: list[dict[str, Any]]) -> dict[str, str]:
    """Median time of an iteration and the share of it that waited for data."""
    times = [(entry['time'], entry.get('data_time', 0.)) for entry in entries
             if 'loss' in entry and entry.get('time')]
    if not times:
        return {}
    took, waited = np.median(times, axis=0)
    facts = {'training, seconds per iteration': f'{took:.3g}',
             'of this, waiting for data': f'{100 * waited / took:.0f} %'}
    if memory := max((entry.get('memory', 0) for entry in entries), default=0):
        facts['GPU memory of the training'] = f'{memory / 1024:.1f} GiB'
    return facts


def fingerprint(paths: Sequence[str | os.PathLike], what: str, *, names: bool = True) -> str:
    """A short hash of files, wherever they lie, and in words what the hash is of.

    Args:
        paths: the files, in an order that does not depend on the machine.
        what: the files are, for example 'label files'.
        names: hash the names of the files too, without their folders.
    """
    whole = hashlib.sha256()
    for path in paths:
        if names:
            whole.update(os.path.basename(path).encode('utf-8', 'surrogateescape') + b'\0')
        with open(path, 'rb') as file:
            whole.update(hashlib.sha256(file.read()).digest())
    of = 'names and contents' if names else 'contents'
    return f'{whole.hexdigest()[:16]} (SHA-256 of the {of} of {len(paths):,} {what})'


def versions() -> dict[str, str]:
    """The installed libraries that matter, by name."""
    found = {}
    for name in _LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def facts_section(facts: Mapping[str, str], config: str = '') -> page.Section:
    """What was evaluated, with which versions; the config at a click."""
    rows = [[name, value] for name, value in {**facts, **versions()}.items()]
    content: list[Markup] = [page.table(['what', 'value'], rows)]
    if config:
        content.append(page.folded('Config', config))
    return page.Section('Origin', '', content)
