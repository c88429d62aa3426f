"""Compare the result of a config's loading steps with the contents of the files.

Pillow, which detects damaged files best, decodes every image completely. Then a few files of each
kind (format, mode, bits, orientation) go through the loaders of the pipeline. The two results are
compared, which shows what the loaders change.
"""
from __future__ import annotations

import copy
import importlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from visattn_dense.files import cores, read_all, spread
from visattn_dense.images import opened, raw_mode
from visattn_dense.openmmlab.datasets.check_duplicates import THUMBNAIL, fingerprint
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

ORIENTATION = 0x0112
# The operation that undoes each EXIF orientation.
_UNTURN = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
           4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
           6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
           8: Image.Transpose.ROTATE_270}
_OPENMMLAB = ('mmcv', 'mmseg', 'mmdet')
# Loading steps are among the first steps of a pipeline.
_FIRST_STEPS = 4
_SAMPLE = 3
# The quick check reads the heads of this many files: a second or two.
_HEADS = 1000
# For a larger image, two copies of the pixels take too much memory.
_MOST_COMPARED = 2**26
# Mean difference of two decoders of the same JPEG stays below 2.
_DECODERS_DIFFER = 10


@dataclass
class ImageReading:
    """The result of reading one image.

    size: (width, height) in pixels after loading; None if the image was not decoded. fault: why the
    image cannot be read. kind: files of one kind are loaded alike. bands: number of bands in the
    file. deep: more than 8 bits. turned: the loader turns the image by its EXIF orientation, and
    the size stays the same. fingerprint: for the search for copies; None without Pillow.
    """

    size: tuple[int, int] | None = None
    fault: str = ''
    kind: tuple = ()
    orientation: int = 1
    bands: int = 0
    deep: bool = False
    turned: bool = False
    fingerprint: np.ndarray | None = None

    def turned_hint(self) -> str:
        return (f'; the loader turned it by its EXIF orientation {self.orientation}: save it '
                'turned and without the tag' if self.orientation != 1 else '')


class Undelivered(LookupError):
    """The first steps of a pipeline do not give the wanted keys."""


class Loading:
    """The loading steps at the head of a pipeline."""

    def __init__(self, steps: Sequence[Any], *, problem: str = '') -> None:
        self.steps, self.problem = list(steps), problem
        first = self.steps[0] if self.steps else None
        self.name = type(first).__name__
        self.own = first is None or not (
            type(first).__module__.split('.')[0] in _OPENMMLAB
            and self.name == 'LoadImageFromFile' and first.imdecode_backend != 'tifffile')
        stock = [step for step in self.steps if type(step).__module__.split('.')[0] in _OPENMMLAB]
        self.own_labels = len(stock) < len(self.steps) and not any(
            type(step).__name__ == 'LoadAnnotations' for step in stock)
        # A loader of the user may keep what it reads; OpenMMLab's loaders keep nothing.
        self._lock = threading.Lock()

    @classmethod
    def usual(cls, scope: str | None = None) -> Loading:
        """The loading steps of a pipeline that has none of its own."""
        steps = [importlib.import_module('mmcv.transforms').LoadImageFromFile()]
        if scope == 'mmseg':
            steps.append(importlib.import_module('mmseg.datasets.transforms').LoadAnnotations())
        return cls(steps)

    @classmethod
    def of(cls, leaf: Mapping, scope: str | None) -> Loading:
        """The loading steps of a dataset's config; `problem` says why steps cannot be built."""
        pipeline = list(leaf.get('pipeline') or ())
        if not pipeline:
            return cls.usual(scope)
        registry = importlib.import_module(f'{scope or "mmengine"}.registry').TRANSFORMS
        default_scope = importlib.import_module('mmengine.registry').DefaultScope
        steps = []
        for at, step in enumerate(pipeline[:_FIRST_STEPS]):
            try:
                # Another scope may be the default of this process.
                with default_scope.overwrite_default_scope(scope):
                    steps.append(registry.build(copy.deepcopy(step))
                                 if isinstance(step, Mapping) else step)
            # A step may raise anything; only the first steps load.
            except Exception as error:
                name = step.get('type')
                return cls(steps, problem='' if at else f'{name}: {error}')
        return cls(steps)

    def deliver(self, item: Mapping, *wanted: str) -> dict:
        """The result of the pipeline's first steps for an entry of the dataset.

        Args:
            item: img_path and the other entries of the dataset's list.
            wanted: the keys to wait for, 'img' and perhaps 'gt_seg_map'.

        Raises:
            Undelivered: the first steps do not give these keys.
            Exception: any error of a step.
        """
        results = copy.deepcopy(dict(item))
        for step in self.steps:
            if all(key in results for key in wanted):
                break
            results = step(results)
            if results is None:
                raise ValueError(f'{type(step).__name__} delivers nothing')
        lacking = [key for key in wanted if key not in results]
        if lacking:
            raise Undelivered(f'the first {len(self.steps)} steps of the pipeline deliver no '
                              f'{" and no ".join(lacking)}')
        return results

    def delivers(self, item: Mapping, wanted: str) -> bool:
        """Whether one of the first steps gives this key, tried with one item."""
        try:
            self.deliver(item, wanted)
        except Undelivered:
            return False
        # A damaged file tells nothing about the steps.
        except Exception:
            return True
        return True

    def sample(self, items: Sequence[Mapping]) -> list[Mapping]:
        """Some items for the quick check: some spread over the dataset, and one of each kind.

        The heads of at most `_HEADS` files tell the kinds.
        """
        chosen = spread(items)
        taken = {item['img_path'] for item in chosen}
        heads = spread(items, _HEADS)
        kinds = list(read_all(_kind_by_head, heads, workers=cores()))
        seen = {kind for item, kind in zip(heads, kinds, strict=True) if item['img_path'] in taken}
        for item, kind in zip(heads, kinds, strict=True):
            if kind not in seen:
                seen.add(kind)
                chosen.append(item)
        return chosen

    def read_images(self, items: Sequence[Mapping], progress: str = '') -> list[ImageReading]:
        """Decode the image of every item."""
        return list(read_all(self.read_image, items, workers=cores(), progress=progress))

    def read_image(self, item: Mapping) -> ImageReading:
        """Decode the image of one item. The result has its size after loading, and its kind."""
        path = item['img_path']
        reading = ImageReading()
        try:
            with opened(path) as image:
                _describe(image, reading)
                # A reduced scale skips most of a JPEG's inverse transform, yet reads every byte.
                image.draft(None, tuple(max(2 * THUMBNAIL, side // 8) for side in image.size))
                image.load()
                reading.fingerprint = fingerprint(image)
        except OSError as error:
            unknown = isinstance(error, UnidentifiedImageError)
            if not (unknown or self.own) or not Path(path).is_file():
                reading.fault = _short(error)
                return reading
            reading.bands, reading.size = tiff_bands(path), None
            reading.kind = 'unknown', Path(path).suffix
        if reading.size is None or reading.orientation != 1:
            self._ask_loader(item, reading)
        return reading

    def _ask_loader(self, item: Mapping, reading: ImageReading) -> None:
        """Size and orientation from the loader, if Pillow cannot read the file."""
        pixels, reading.fault = self._pixels(item)
        if pixels is None:
            return
        height, width = pixels.shape[:2]
        reading.size = width, height
        if reading.orientation != 1 and (width == height or reading.orientation < 5):
            reading.turned = _is_turned(item['img_path'], reading.orientation, pixels)

    def _pixels(self, item: Mapping) -> tuple[np.ndarray | None, str]:
        """What the loader delivers for an image, or None, and what is wrong with the image."""
        try:
            with self._lock:
                return np.asarray(self.deliver(item, 'img')['img']), ''
        except Undelivered:
            return None, ''
        # Any error of the loader would end the training too.
        except Exception as error:
            return None, f'{self.name}: {_short(error)}'

    def unreadable(self, file: str, reading: ImageReading) -> tuple[str, str, str]:
        """(what, fix, where) of an image with a fault."""
        return ('image cannot be read', 'download or copy the file again; a format that '
                f'{self.name} does not read needs a loader of your own (docs/datasets.md)',
                f'{file} ({reading.fault})')

    def compare(self, items: Sequence[Mapping], readings: Sequence[ImageReading],
                report: DatasetReport, *, has_labels: bool) -> None:
        """Report what the loader changes; a few files of each kind are loaded."""
        report.fingerprints |= {
            item['img_path']: reading.fingerprint for item, reading in zip(
                items, readings, strict=True) if reading.fingerprint is not None}
        if self.problem:
            report.add('the first step of the pipeline cannot be built', 'correct it in the '
                       'config; a loader of your own needs custom_imports=dict(imports=[its '
                       'module])', self.problem)
            return
        turned = [f'{item["img_path"]} (orientation {reading.orientation})'
                  for item, reading in zip(items, readings, strict=True) if reading.turned]
        if turned and has_labels:
            report.add(f'{self.name} turns images by their EXIF orientation, and nothing turns '
                       'their labels', 'save the images turned and without the tag '
                       '(PIL.ImageOps.exif_transpose); or, if the labels fit the pixels as stored, '
                       "set color_type='color_ignore_orientation' in the loading step", turned)
        if self.own and items:
            if all(reading.size is None and not reading.fault for reading in readings):
                report.notes.append('the first steps of the pipeline deliver no img, so the check '
                                    'cannot look into the images')
                return
            report.notes.append(f'images are read by {self.name}: whether it keeps their values '
                                'is not known to the check')
        for item, reading in _of_each_kind(items, readings):
            self._compare_one(item, reading, report)

    def _compare_one(self, item: Mapping, reading: ImageReading, report: DatasetReport) -> None:
        path = item['img_path']
        pixels, fault = self._pixels(item)
        if fault:
            report.add(*self.unreadable(path, ImageReading(fault=fault)))
        if pixels is None or self.own:
            return
        channels = pixels.shape[2] if pixels.ndim == 3 else 1
        compared = pixels.shape[0] * pixels.shape[1] <= _MOST_COMPARED
        if channels < reading.bands and not (compared and _last_band_is_flat(path)):
            report.add(f'{self.name} drops bands of the images', 'if the network should see them, '
                       'write a loader of your own (docs/datasets.md); if not, save the images '
                       'with three bands',
                       f'{path} ({reading.bands} bands, {channels} arrive)', blocks=False)
        change = _changed_values(path, reading, pixels, compared)
        if change:
            report.add(f'{self.name} changes the values of the images', 'save them as 8 bits, '
                       'scaled as you want them, or write a loader of your own that keeps their '
                       'values (docs/datasets.md)', f'{path} ({change})')


def _of_each_kind(items: Sequence[Mapping], readings: Sequence[ImageReading],
                  ) -> Iterator[tuple[Mapping, ImageReading]]:
    """At most `_SAMPLE` sound images of every kind."""
    kinds: dict[tuple, list[tuple[Mapping, ImageReading]]] = {}
    for item, reading in zip(items, readings, strict=True):
        if not reading.fault:
            kinds.setdefault(reading.kind, []).append((item, reading))
    for alike in kinds.values():
        yield from spread(alike, _SAMPLE)


def _kind_by_head(item: Mapping) -> tuple:
    """The kind of an image, from its head; the suffix if Pillow does not know the format."""
    reading = ImageReading()
    try:
        with opened(item['img_path'], decode=False) as image:
            _describe(image, reading)
    except OSError:
        return 'unknown', Path(item['img_path']).suffix
    return reading.kind


def _describe(image: Image.Image, reading: ImageReading) -> None:
    """Fill in the facts from the head of a file."""
    raw = raw_mode(image)
    reading.size = image.size
    reading.bands = len(image.getbands()) if image.mode not in ('CMYK', 'YCbCr', 'P', 'PA') else 3
    reading.deep = image.mode[0] in 'IF' or ';16' in raw or ';32' in raw
    try:
        reading.orientation = int(image.getexif().get(ORIENTATION, 1))
    # A damaged EXIF block does not stop any decoder.
    except Exception:
        reading.orientation = 1
    if reading.orientation not in _UNTURN:
        reading.orientation = 1
    reading.kind = image.format, image.mode, raw, reading.orientation


def _is_turned(path: str, orientation: int, pixels: np.ndarray) -> bool:
    """Whether the loader's pixels are nearer to the turned image than to the stored one."""
    with opened(path) as image:
        is_tiff = image.format == 'TIFF'
        image.load()
        grey = image.convert('L')
    # Pillow itself turns TIFF files.
    stored = grey.transpose(_UNTURN[orientation]) if is_tiff else grey
    turned = grey if is_tiff else grey.transpose(_turn(orientation))
    loaded = pixels.astype(float)
    loaded = loaded[..., :3].mean(axis=2) if loaded.ndim == 3 else loaded
    if stored.size != turned.size or loaded.shape != (stored.height, stored.width):
        return False
    distance = [np.abs(np.asarray(side, float) - loaded).mean() for side in (stored, turned)]
    return bool(distance[1] < distance[0])


def _turn(orientation: int) -> Image.Transpose:
    """The turn for an orientation. Every turn is its own reverse, except a quarter turn."""
    return {6: Image.Transpose.ROTATE_270, 8: Image.Transpose.ROTATE_90}.get(
        orientation, _UNTURN[orientation])


def _last_band_is_flat(path: str) -> bool:
    """Whether the last band holds one value, such as an alpha of 255 everywhere."""
    try:
        with opened(path) as image:
            low, high = image.getchannel(image.getbands()[-1]).getextrema()
    except OSError:
        return False
    return low == high


def _changed_values(path: str, reading: ImageReading, pixels: np.ndarray, compared: bool) -> str:
    """How the loader changes values, in words; empty for no change, or if this is unknown."""
    if reading.deep and reading.bands > 1:
        # Pillow itself keeps only 8 bits of these.
        return ('' if pixels.dtype != np.uint8 and pixels.max(initial=0) > 255 else
                f'more than 8 bits, {pixels.min()}..{pixels.max()} arrive')
    if not compared or reading.orientation != 1 or reading.kind[0] == 'unknown':
        return f'more than 8 bits arrive as {pixels.dtype}' if (
            reading.deep and pixels.dtype == np.uint8) else ''
    with opened(path) as image:
        if image.mode not in ('L', 'RGB') and not reading.deep:
            return ''
        held = np.asarray(image).astype(np.float64)
    loaded = pixels.astype(np.float64)
    if held.shape[:2] != loaded.shape[:2]:
        return ''
    if held.ndim == 2:
        loaded = loaded.reshape(*loaded.shape[:2], -1)
        difference = np.abs(loaded - held[..., None])
    elif loaded.ndim == 3 and loaded.shape[2] == 3:
        # OpenMMLab's loaders give blue first.
        difference = np.abs(loaded[..., ::-1] - held)
    else:
        return ''
    largest = difference.max() if reading.deep else difference.mean()
    if largest <= (0 if reading.deep else _DECODERS_DIFFER):
        return ''
    return f'{held.min():g}..{held.max():g} arrive as {loaded.min():g}..{loaded.max():g}'


def tiff_bands(path: str) -> int:
    """Bands of a TIFF file that Pillow cannot open; 0 if the file is not a TIFF."""
    try:
        with open(path, 'rb') as file:
            directory = ImageFileDirectory_v2(file.read(8))
            file.seek(directory.next)
            directory.load(file)
            return int(directory.get(277, 1))
    except Exception:
        return 0


def _short(error: BaseException) -> str:
    """The first line of an error."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
