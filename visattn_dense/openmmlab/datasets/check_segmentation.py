"""Check a semantic segmentation dataset: image/label pairs, sizes and every label value."""
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from visattn_dense.errors import few
from visattn_dense.files import cores, list_files, read_all, spread
from visattn_dense.images import LOSSY, opened
from visattn_dense.openmmlab.datasets.check_files import (
    FULL_ADE20K,
    check_folders,
    looks_like_full_ade20k,
    report_no_images,
)
from visattn_dense.openmmlab.datasets.check_loading import ImageReading, Loading, Undelivered
from visattn_dense.openmmlab.datasets.check_report import SHOWN, DatasetReport

# To compare a larger label pixel by pixel takes too long.
MOST_COMPARED = 2**26
# mmsegmentation's value for label 0 with reduce_zero_label, and for classes that are left out.
IGNORE = 255


@dataclass
class Reading:
    """The result of reading one image/label pair; `faults` (what, fix, file) ended the reading.

    values: raw value -> pixels. If the user's own loader reads the label: final value -> pixels.
    """

    label: str | None
    image: ImageReading
    label_size: tuple[int, int] | None = None
    mode: str = ''
    format: str = ''
    values: Counter[int] = field(default_factory=Counter)
    faults: list[tuple[str, str, str]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int] | None:
        return self.image.size


@dataclass
class LabelRule:
    """The rules from a raw label value to a class.

    num_classes: 0..num_classes-1 are classes. ignore: values that the loss ignores.
    reduce_zero_label and label_map: applied as in mmsegmentation's LoadAnnotations, in its order.
    """

    num_classes: int
    ignore: int = IGNORE
    reduce_zero_label: bool = False
    label_map: dict[int, int] | None = None

    def target(self, raw: int) -> int:
        """The value that the loss gets."""
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


def read_pair(item: Mapping, loading: Loading) -> Reading:
    """Decode one image and its label completely."""
    label_path = item.get('seg_map_path')
    reading = Reading(label_path, loading.read_image(item))
    if reading.image.fault:
        reading.faults.append(loading.unreadable(item['img_path'], reading.image))
    if label_path is None:
        return reading
    if loading.own_labels:
        _read_by_loader(item, loading, reading)
        return reading
    try:
        with opened(label_path) as label:
            label.load()
            reading.label_size, reading.mode = label.size, label.mode
            reading.format = label.format or ''
            if len(label.getbands()) == 1:
                reading.values = count_values(label)
            elif _is_grey(label):
                reading.mode = f'{label.mode}, equal channels'
    except OSError as error:
        reading.faults.append(('label cannot be read', 'download or copy the file again',
                               f'{label_path} ({error})'))
    return reading


def _read_by_loader(item: Mapping, loading: Loading, reading: Reading) -> None:
    """Read the label with the user's own loader."""
    try:
        label = np.asarray(loading.deliver(item, 'gt_seg_map')['gt_seg_map'])
    # Any error of the loader would end the training too.
    except Exception as error:
        reading.faults.append(('label cannot be loaded', 'correct the loader, or the file',
                               f'{reading.label} ({type(error).__name__}: {error})'))
        return
    if label.ndim != 2:
        reading.faults.append(('the loader of the labels does not deliver (height, width)',
                               'deliver one class index for each pixel',
                               f'{reading.label} {label.shape}'))
        return
    reading.label_size = label.shape[1], label.shape[0]
    values, pixels = np.unique(label, return_counts=True)
    reading.values = Counter(dict(zip(map(int, values), map(int, pixels), strict=True)))


def count_values(label: Image.Image) -> Counter[int]:
    """Value -> pixels of an image of one band."""
    if label.mode in ('1', 'L', 'P'):
        # A bit of 1 counts as 255 in Pillow's histogram, and as 1 in an array.
        found = {1 if label.mode == '1' and i else i: n
                 for i, n in enumerate(label.histogram()) if n}
        return Counter(found)
    values, pixels = np.unique(np.asarray(label), return_counts=True)
    return Counter(dict(zip(map(int, values), map(int, pixels), strict=True)))


def _is_grey(label: Image.Image) -> bool:
    if label.mode != 'RGB':
        return False
    first, *others = label.split()
    return all(band.tobytes() == first.tobytes() for band in others)


def check_segmentation(dataset: Any, num_classes: int, head_ignore: int | None,
                       report: DatasetReport, *, quick: bool,
                       palette_decoded: bool = False, loading: Loading | None = None) -> None:
    """Check a lazily built mmsegmentation dataset and fill its report.

    Args:
        dataset: subclass of BaseSegDataset, built with lazy_init=True.
        num_classes: classes that labels may take.
        head_ignore: ignore_index of the decode head; None if the config has no head.
        report: receives sizes, histogram, problems and notes.
        quick: list all files but open only a sample of them.
        palette_decoded: the pipeline decodes labels with OpenCV, which turns palettes to colours.
        loading: the loading steps of the dataset's pipeline; None for the usual steps.
    """
    prefix = dataset.data_prefix
    image_dir, label_dir = prefix.get('img_path'), prefix.get('seg_map_path')
    listed = bool(dataset.ann_file) and not os.path.isdir(dataset.ann_file)
    if not image_dir:
        report.add('the dataset has no data_prefix.img_path',
                   'set data_root and data_prefix=dict(img_path=..., seg_map_path=...)')
        return
    loading = loading or Loading.usual('mmseg')
    if not check_folders(dataset, [image_dir, label_dir], report, files=[
            path for path in [dataset.ann_file] if not os.path.isdir(path)]):
        return
    try:
        # mmengine follows a circular link forty times; this check refuses such a link.
        for folder in filter(None, (image_dir, label_dir)):
            list_files(folder)
        items = dataset.load_data_list()
    # The file of names may hold anything, for example binary data.
    except Exception as error:
        report.add('the files cannot be listed', 'repair the folder, or the list in ann_file',
                   f'{dataset.ann_file or image_dir} ({error})')
        return
    if not label_dir:
        items = [{key: value for key, value in item.items() if key != 'seg_map_path'}
                 for item in items]
    pairs = [(item['img_path'], item.get('seg_map_path')) for item in items]
    report.images = len(pairs)
    if not pairs and listed:
        report.add('the list of the images is empty', 'write a name in each line, without its '
                   'suffix, or leave ann_file out', dataset.ann_file)
        return
    if not pairs:
        report_no_images(dataset, image_dir, dataset.img_suffix, report)
        return
    pairs = _complete_pairs(dataset, pairs, listed, report)
    if head_ignore is not None and dataset.ignore_index != head_ignore:
        report.add(f'ignore_index of the dataset is {dataset.ignore_index}, of the decode head '
                   f'{head_ignore}', 'give both the same value', blocks=False)
    rule = LabelRule(num_classes, dataset.ignore_index if head_ignore is None else head_ignore,
                     dataset.reduce_zero_label, dataset.label_map)
    kept = set(pairs)
    items = [item for item in items if (item['img_path'], item.get('seg_map_path')) in kept]
    loading.own_labels = bool(items) and loading.own_labels and loading.delivers(
        items[0], 'gt_seg_map')
    if loading.own_labels:
        # These labels are final: the loader has applied what it applies.
        rule = LabelRule(num_classes, rule.ignore)
    chosen = loading.sample(items) if quick else items
    readings = list(read_all(partial(read_pair, loading=loading), chosen,
                             workers=1 if loading.own_labels else cores(),
                             progress='' if quick else f'{report.split}: {report.name}'))
    _report_readings(chosen, readings, rule, report, palette_decoded)
    _report_values(dataset, readings, rule, report)
    loading.compare(chosen, [reading.image for reading in readings], report,
                    has_labels=bool(label_dir))
    if label_dir and not loading.own_labels and not palette_decoded:
        _compare_labels(chosen, readings, rule, loading, report)


def _compare_labels(items: Sequence[Mapping], readings: Sequence[Reading], rule: LabelRule,
                    loading: Loading, report: DatasetReport) -> None:
    """Load a few labels of each kind, and compare these with the contents of the files."""
    kinds: dict[tuple, list[tuple[Mapping, Reading]]] = {}
    for item, reading in zip(items, readings, strict=True):
        if reading.values and not reading.faults and all(map(rule.allows, reading.values)):
            kinds.setdefault((reading.format, reading.mode), []).append((item, reading))
    table = np.array([rule.target(value) for value in range(256)])
    for alike in kinds.values():
        for item, reading in spread(alike, 3):
            width, height = reading.label_size
            if width * height > MOST_COMPARED:
                continue
            try:
                loaded = np.asarray(loading.deliver(item, 'gt_seg_map')['gt_seg_map'])
            except Undelivered:
                return
            # The image's own faults are reported with the image.
            except Exception as error:
                if not reading.image.fault:
                    report.add('label cannot be loaded', 'correct the loading step of the '
                               'pipeline, or the file',
                               f'{reading.label} ({type(error).__name__}: {error})')
                continue
            with opened(reading.label) as label:
                wanted = table[np.asarray(label).astype(np.int64)]
            if loaded.shape != wanted.shape or (loaded != wanted).any():
                report.add('the loading step changes the values of the labels',
                           'save labels as PNG of 8 bits and one channel',
                           f'{reading.label} (mode {reading.mode})')


def _complete_pairs(dataset: Any, pairs: list[tuple[str, str | None]], listed: bool,
                    report: DatasetReport) -> list[tuple[str, str | None]]:
    """Report images without label and labels without image; return the pairs whose files exist."""
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
               _other_label(dataset, bare[0]) or
               f'add a {dataset.seg_map_suffix} of the same name to {label_dir}, or remove the '
               'image')
        report.add('image without a label', fix, bare)
    used = {label for _, label in pairs}
    # A list of names takes a part of the files by intention, so the rest is not a fault.
    same_files = (image_dir, dataset.img_suffix) == (label_dir, dataset.seg_map_suffix)
    if not listed and not same_files and (orphans := sorted(labels - used)):
        report.add('label without an image', f'add a {dataset.img_suffix} of the same name to '
                   f'{image_dir}, or remove the label', orphans, blocks=False)
    missing = set(bare)
    return [pair for pair in pairs if pair[0] not in missing]


def _other_label(dataset: Any, image: str) -> str:
    """What to do if the label of an image exists with another suffix; else ''."""
    image_dir, label_dir = (dataset.data_prefix.get(key) for key in ('img_path', 'seg_map_path'))
    # With several suffixes, the matching one may not be the first.
    stem = os.path.relpath(image, image_dir)
    stem = stem.removesuffix(dataset.img_suffix) if stem.endswith(dataset.img_suffix) else (
        os.path.splitext(stem)[0])
    beside = Path(label_dir, stem)
    if not beside.parent.is_dir():
        return ''
    endings = sorted(path.name[len(beside.name):] for path in beside.parent.iterdir()
                     if path.name.startswith(beside.name) and str(path) != image)
    # 'a1.png' begins like 'a' and belongs to another image.
    endings = [ending for ending in endings if ending[:1] in ('.', '_', '-')]
    for ending in endings:
        if ending.lower().endswith(('.jpg', '.jpeg')):
            return (f'{stem}{ending} is there, but JPEG changes class indices: make the masks '
                    'again from their source, as PNG')
        return f"{stem}{ending} is there: set seg_map_suffix='{ending}' in the dataset"
    return ''


def _report_readings(items: Sequence[Mapping], readings: Sequence[Reading],
                     rule: LabelRule, report: DatasetReport, palette_decoded: bool) -> None:
    """Report faults of single files, sizes and the histogram."""
    constant = []
    report.read = len(readings)
    lossy = [reading.label for reading in readings if reading.format in LOSSY]
    if lossy:
        report.add('label saved as JPEG, which changes class indices',
                   'make it again from its source, as PNG', lossy)
    for item, reading in zip(items, readings, strict=True):
        image, label = item['img_path'], reading.label
        for fault in reading.faults:
            report.add(*fault)
        if reading.size:
            report.sizes.append(reading.size)
        if reading.size and reading.label_size and reading.size != reading.label_size:
            report.add('image and label differ in size',
                       'make the label again from this image, or pair the right files',
                       f'{image} {_by(reading.size)}, {label} {_by(reading.label_size)}'
                       f'{reading.image.turned_hint()}')
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
                            + few(constant, SHOWN))


def _report_values(dataset: Any, readings: Sequence[Reading], rule: LabelRule,
                   report: DatasetReport) -> None:
    """Report faults that only the values of all labels together show."""
    ade = 'ADE' in type(dataset).__name__
    grey = [r.label for r in readings if r.mode.endswith('equal channels')]
    if grey:
        report.add('label has three equal channels, and one is wanted', "save one of them: "
                   "Image.open(path).getchannel(0).save(path)", grey)
    coloured = [f'{r.label} (mode {r.mode})' for r in readings
                if r.mode and not r.values and r.label not in grey]
    if coloured:
        full = ade or looks_like_full_ade20k(dataset.data_root)
        report.add('label is a colour picture, not class indices', FULL_ADE20K if full else
                   'replace each colour by its class index and save one channel (PNG of mode L '
                   'or P)', coloured)
    # JPEG has changed the values, so the values tell nothing more.
    readings = [reading for reading in readings if reading.format not in LOSSY]
    seen = {raw for reading in readings for raw in reading.values}
    bad = {raw for raw in seen if not rule.allows(raw)}
    if bad:
        where = []
        for reading in readings:
            values = sorted(bad & set(reading.values))
            if values:
                where.append(f'{reading.label} (value{"s"[:len(values) > 1]} {few(values, 8)})')
        report.add(f'label value out of range ({rule})', _range_fix(dataset, rule, seen, bad),
                   where)
        return
    if rule.num_classes > 1 and seen and len(report.counts) <= 1:
        single = next(iter(report.counts), None)
        what = ('every pixel read is ignored' if single is None else
                f'every label read holds only class {single}, apart from ignored pixels')
        first = next(reading for reading in readings if reading.values)
        binary = seen <= {0, IGNORE} and not rule.reduce_zero_label
        # A sample, or a small validation set, may really have a single class.
        sure = report.split == 'train' and report.read == report.images
        report.add(what, 'a mask saved as 0/255? Save it as 0/1: 255 is ignored' if binary else
                   'check that seg_map_path names the class labels, and reduce_zero_label',
                   f'{first.label} (values {", ".join(map(str, sorted(first.values)))})',
                   blocks=sure)


def _range_fix(dataset: Any, rule: LabelRule, seen: set[int], bad: set[int]) -> str:
    """The most probable mistake, if `bad` are the values out of range among `seen`."""
    names = [cls.__name__ for cls in type(dataset).__mro__]
    n = rule.num_classes
    if 'CamVidDataset' in names and bad == {n}:
        return (f'the SegNet tutorial writes unlabelled pixels as {n}: turn them into 255 '
                '(docs/datasets.md has the script)')
    if max(bad) > 150 and (looks_like_full_ade20k(dataset.data_root)
                           or any('ADE' in name for name in names)):
        return FULL_ADE20K
    if bad == {n} and 0 not in seen and not rule.reduce_zero_label and rule.label_map is None:
        return (f'no pixel holds 0 and the largest value is {n}, so these labels count the {n} '
                f'classes from 1: write 0..{n - 1}, or set reduce_zero_label=True in the dataset')
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
