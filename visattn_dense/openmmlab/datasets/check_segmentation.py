"""Check of a semantic segmentation dataset: image/label pairs, sizes and every label value."""
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from visattn_dense.openmmlab.datasets.check_files import (
    FULL_ADE20K,
    check_folders,
    cores,
    image_size,
    list_files,
    looks_like_full_ade20k,
    read_all,
    report_no_images,
    spread,
)
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

# What mmsegmentation writes for label 0 under reduce_zero_label, and for classes left out.
IGNORE = 255


@dataclass
class Reading:
    """One image/label pair as read; `faults` are (what, fix, file) that ended the reading."""

    label: str | None
    size: tuple[int, int] | None = None
    label_size: tuple[int, int] | None = None
    mode: str = ''
    values: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[str, str, str]] = field(default_factory=list)


@dataclass
class LabelRule:
    """How a raw label value becomes a class.

    num_classes: 0..num_classes-1 are classes. ignore: values left out of the loss.
    reduce_zero_label and label_map: as mmsegmentation's LoadAnnotations applies them, in its order.
    """

    num_classes: int
    ignore: int = IGNORE
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None

    def target(self, raw: int) -> int:
        """The value that the loss sees."""
        value = raw
        if self.reduce_zero_label:
            value = IGNORE if raw in (0, IGNORE) else raw - 1
        return (self.label_map or {}).get(value, value)

    def allows(self, raw: int) -> bool:
        # Labels are cast to uint8 on loading: 256 would become class 0 unseen.
        target = self.target(raw)
        return raw <= 255 and (target == self.ignore or 0 <= target < self.num_classes)

    def __str__(self) -> str:
        first = int(self.reduce_zero_label)
        zero = '0 (not a class: reduce_zero_label), ' if first else ''
        return (f'{self.num_classes} classes take {zero}{first}..{self.num_classes - 1 + first} '
                f'and {self.ignore} (ignored)')


def read_pair(pair: tuple[str, str | None]) -> Reading:
    """Decode one image and its label to their ends."""
    image_path, label_path = pair
    reading = Reading(label_path)
    try:
        reading.size = image_size(image_path)
    except OSError as error:
        reading.faults.append(('image cannot be read', 'download or copy the file again',
                               f'{image_path} ({error})'))
    if label_path is None:
        return reading
    try:
        with Image.open(label_path) as label:
            label.load()
            reading.label_size, reading.mode = label.size, label.mode
            if label.mode in ('L', 'P'):
                reading.values = Counter({i: n for i, n in enumerate(label.histogram()) if n})
            elif len(label.getbands()) == 1:
                values, pixels = np.unique(np.asarray(label), return_counts=True)
                reading.values = Counter(
                    dict(zip(map(int, values), map(int, pixels), strict=True)))
    except (OSError, SyntaxError, ValueError) as error:
        reading.faults.append(('label cannot be read', 'download or copy the file again',
                               f'{label_path} ({error})'))
    return reading


def check_segmentation(dataset: Any, num_classes: int, head_ignore: int | None,
                       report: DatasetReport, *, quick: bool,
                       palette_decoded: bool = False) -> None:
    """Check a lazily built mmsegmentation dataset and fill its report.

    Args:
        dataset: subclass of BaseSegDataset, built with lazy_init=True.
        num_classes: classes that labels may take.
        head_ignore: ignore_index of the decode head, None where the config has no head.
        report: receives sizes, histogram, problems and notes.
        quick: list all files but open only a sample of them.
        palette_decoded: the pipeline decodes labels with OpenCV, which turns palettes to colours.
    """
    prefix = dataset.data_prefix
    image_dir, label_dir = prefix.get('img_path'), prefix.get('seg_map_path')
    listed = bool(dataset.ann_file) and not os.path.isdir(dataset.ann_file)
    if not image_dir:
        report.add('the dataset has no data_prefix.img_path',
                   'set data_root and data_prefix=dict(img_path=..., seg_map_path=...)')
        return
    if not check_folders(dataset, [image_dir, label_dir, dataset.ann_file], report):
        return
    items = dataset.load_data_list()
    pairs = [(item['img_path'], item.get('seg_map_path') if label_dir else None) for item in items]
    report.images = len(pairs)
    if not pairs:
        report_no_images(dataset, image_dir, dataset.img_suffix, report)
        return
    pairs = _complete_pairs(dataset, pairs, listed, report)
    if head_ignore is not None and dataset.ignore_index != head_ignore:
        report.add(f'ignore_index of the dataset is {dataset.ignore_index}, of the decode head '
                   f'{head_ignore}', 'give both the same value', blocks=False)
    rule = LabelRule(num_classes, dataset.ignore_index if head_ignore is None else head_ignore,
                     dataset.reduce_zero_label, dataset.label_map)
    chosen = spread(pairs) if quick else pairs
    readings = list(read_all(read_pair, chosen, workers=cores(),
                             progress='' if quick else f'{report.split}: {report.name}'))
    _report_readings(chosen, readings, rule, report, palette_decoded)
    _report_values(dataset, readings, rule, report)


def _complete_pairs(dataset: Any, pairs: list[tuple[str, str | None]], listed: bool,
                    report: DatasetReport) -> list[tuple[str, str | None]]:
    """Report orphans on both sides; return the pairs whose files exist."""
    image_dir, label_dir = (dataset.data_prefix.get(key) for key in ('img_path', 'seg_map_path'))
    if listed:
        there = {os.path.join(image_dir, name)
                 for name in list_files(image_dir, dataset.img_suffix)}
        lost = [image for image, _ in pairs if image not in there and not os.path.exists(image)]
        if lost:
            report.add(f'image listed in {dataset.ann_file} does not exist',
                       'add the image or take the line out of the list', lost)
        absent = set(lost)
        pairs = [pair for pair in pairs if pair[0] not in absent]
    if not label_dir:
        report.notes.append('no labels are configured (data_prefix.seg_map_path)')
        return pairs
    labels = {os.path.join(label_dir, name)
              for name in list_files(label_dir, dataset.seg_map_suffix)}
    bare = [image for image, label in pairs if label not in labels and not os.path.exists(label)]
    if bare:
        stem = bare[0][:-len(dataset.img_suffix)]
        fix = (FULL_ADE20K if os.path.exists(stem + '_seg.png') else
               f'add a {dataset.seg_map_suffix} of the same name to {label_dir}, or remove the '
               'image')
        report.add('image without a label', fix, bare)
    used = {label for _, label in pairs}
    # A list takes a part of the files by intention; the rest of them are no orphans.
    same_files = (image_dir, dataset.img_suffix) == (label_dir, dataset.seg_map_suffix)
    if not listed and not same_files and (orphans := sorted(labels - used)):
        report.add('label without an image', f'add a {dataset.img_suffix} of the same name to '
                   f'{image_dir}, or remove the label', orphans, blocks=False)
    missing = set(bare)
    return [pair for pair in pairs if pair[0] not in missing]


def _report_readings(pairs: Sequence[tuple[str, str | None]], readings: Sequence[Reading],
                     rule: LabelRule, report: DatasetReport, palette_decoded: bool) -> None:
    """Faults of single files, sizes and the histogram."""
    constant = []
    report.read = len(readings)
    for (image, label), reading in zip(pairs, readings, strict=True):
        for fault in reading.faults:
            report.add(*fault)
        if reading.size:
            report.sizes.append(reading.size)
        if reading.size and reading.label_size and reading.size != reading.label_size:
            report.add('image and label differ in size',
                       'make the label again from this image, or pair the right files',
                       f'{image} {_by(reading.size)}, {label} {_by(reading.label_size)}')
        if reading.mode == 'P' and palette_decoded:
            report.add('label with a palette, which the OpenCV decoder turns into colours',
                       "set imdecode_backend='pillow' in LoadAnnotations", label)
        for raw, pixels in reading.values.items():
            target = rule.target(raw)
            if target != rule.ignore and rule.allows(raw):
                report.counts[target] += pixels
            else:
                report.ignored += pixels
        if len(reading.values) == 1:
            constant.append(f'{label} (value {next(iter(reading.values))})')
    if constant:
        report.notes.append(f'{len(constant)} labels hold a single value: '
                            + ', '.join(constant[:5]) + (', ...' if len(constant) > 5 else ''))


def _report_values(dataset: Any, readings: Sequence[Reading], rule: LabelRule,
                   report: DatasetReport) -> None:
    """Faults that show in the values of all labels together."""
    ade = 'ADE' in type(dataset).__name__
    coloured = [f'{r.label} (mode {r.mode})' for r in readings if r.mode and not r.values]
    if coloured:
        full = ade or looks_like_full_ade20k(dataset.data_root)
        report.add('label is a colour picture, not class indices', FULL_ADE20K if full else
                   'replace each colour by its class index and save one channel (PNG of mode L '
                   'or P)', coloured)
    seen = {raw for reading in readings for raw in reading.values}
    bad = {raw for raw in seen if not rule.allows(raw)}
    if bad:
        where = []
        for reading in readings:
            values = sorted(bad & set(reading.values))
            if values:
                text = ', '.join(map(str, values[:8])) + (', ...' if len(values) > 8 else '')
                where.append(f'{reading.label} (value{"s"[:len(values) > 1]} {text})')
        report.add(f'label value out of range ({rule})', _range_fix(dataset, rule, seen, bad),
                   where)
        return
    if rule.num_classes > 1 and seen and len(report.counts) <= 1:
        single = next(iter(report.counts), None)
        what = ('every pixel read is ignored' if single is None else
                f'every label read holds only class {single}, apart from ignored pixels')
        first = next(reading for reading in readings if reading.values)
        binary = seen <= {0, IGNORE} and not rule.reduce_zero_label
        # In a sample, or in a small validation set, a single class may be the truth.
        sure = report.split == 'train' and report.read == report.images
        report.add(what, 'a mask saved as 0/255? Save it as 0/1: 255 is ignored' if binary else
                   'check that seg_map_path names the class labels, and reduce_zero_label',
                   f'{first.label} (values {", ".join(map(str, sorted(first.values)))})',
                   blocks=sure)


def _range_fix(dataset: Any, rule: LabelRule, seen: set[int], bad: set[int]) -> str:
    """What most probably went wrong where `bad` are the values out of range among `seen`."""
    names = [cls.__name__ for cls in type(dataset).__mro__]
    n = rule.num_classes
    if 'CamVidDataset' in names and bad == {n}:
        return (f'the SegNet tutorial writes unlabelled pixels as {n}: turn them into 255 '
                '(docs/datasets.md has the script)')
    if max(bad) > 150 and (looks_like_full_ade20k(dataset.data_root)
                           or any('ADE' in name for name in names)):
        return FULL_ADE20K
    if 'FolderSegDataset' in names and bad == {n}:
        return f'{n + 1} values and {n} class names: name all of them, 0 first'
    if bad == {n} and not rule.reduce_zero_label and rule.label_map is None:
        return (f'labels run to {n} with {n} classes, so 0 is probably "other": set '
                'reduce_zero_label=True in the dataset')
    if max(bad) > 255:
        return ('mmsegmentation reads labels as 8 bit, so these would wrap around to other '
                'classes: write classes from 0 up, and 255 where a pixel has none')
    if bad == {IGNORE}:
        return f'set ignore_index={IGNORE} in dataset and decode heads'
    top = max(value for value in seen if value != IGNORE) + 1 - rule.reduce_zero_label
    return (f'write {rule.ignore} where a pixel has no class; or, if these are classes, name them '
            f'all in metainfo and set num_classes of every head to {top}')


def _by(size: tuple[int, int]) -> str:
    return f'{size[0]}x{size[1]}'
