"""What the pictures of a training show: labels, augmented batches and validation images as arrays.

Everything comes from mmseg's and mmdet's data and is made small at once: a picture never holds
whole images of a data set.
"""
from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import mmcv
import numpy as np
from mmengine.fileio import get as read_bytes
from mmengine.registry import TRANSFORMS
from PIL import Image

from visattn_dense.visualization.colour import IGNORED, Palette, distinct_palette
from visattn_dense.visualization.instances import Instances
from visattn_dense.visualization.labels import ObjectLabels, PixelLabels
from visattn_dense.visualization.layout import fit

SHOWN_SCORE = 0.3
"""Detections below this score are not drawn; of the others the first ones by score."""
_MOST_OBJECTS = 20
_GOLDEN = 0.618033988749895


class Classes(NamedTuple):
    """Names and RGB triples of the classes of a data set."""

    names: list[str]
    palette: Palette

    @classmethod
    def of(cls, dataset: Any) -> Classes:
        meta = getattr(dataset, 'metainfo', None) or {}
        names = [str(name) for name in meta.get('classes') or ()]
        palette = meta.get('palette')
        fits = isinstance(palette, (list, tuple)) and len(palette) >= len(names) and all(
            isinstance(colour, (list, tuple)) and len(colour) == 3 for colour in palette)
        return cls(names, [tuple(c) for c in palette] if fits else distinct_palette(len(names)))


def spread_order(count: int) -> list[int]:
    """The numbers below `count` in an order of which every beginning is spread evenly."""
    return np.argsort(np.arange(count) * _GOLDEN % 1, kind='stable').tolist()


def collect_labels(dataset: Any, *, seconds: float, most: int = 5000) -> PixelLabels | ObjectLabels:
    """Read labels of a data set of mmseg or mmdet until the time is over.

    Args:
        dataset: it may be wrapped (RepeatDataset, ConcatDataset, ...).
        seconds: for reading.
        most: images.

    Raises:
        ValueError: the data set holds no labels of pixels or objects.
    """
    until = time.perf_counter() + seconds
    count = len(dataset)
    names = Classes.of(dataset).names
    pixels, images, ignored = np.zeros(len(names), int), np.zeros(len(names), int), 0
    found: list[tuple[list[int], list[list[float]], tuple[int, int]]] = []
    seen = 0
    for index in spread_order(count)[:most]:
        info = info_of(dataset, index)
        if info.get('seg_map_path') is not None and 'instances' not in info:
            counts = np.bincount(_label_map(dataset, info).ravel(), minlength=len(names))
            pixels += counts[:len(names)]
            images += counts[:len(names)] > 0
            ignored += int(counts[len(names):].sum())
        elif 'instances' in info:
            real = [each for each in info['instances'] if not each.get('ignore_flag')]
            found.append(([each['bbox_label'] for each in real], [each['bbox'] for each in real],
                          (info.get('width', 0), info.get('height', 0))))
        else:
            raise ValueError('the training data hold no labels of pixels or objects')
        seen += 1
        if time.perf_counter() > until:
            break
    if not found:
        return PixelLabels(pixels, images, ignored, seen, count)
    sizes = [size for labels, _, size in found for _ in labels]
    return ObjectLabels(
        np.array([label for labels, _, _ in found for label in labels], int),
        np.array([box for _, boxes, _ in found for box in boxes], float).reshape(-1, 4),
        np.maximum(np.array(sizes, float).reshape(-1, 2), 1), seen, count)


def info_of(dataset: Any, index: int) -> dict[str, Any]:
    """What a data set, also inside a wrapper, knows of one of its images before it is loaded."""
    while not hasattr(dataset, 'get_data_info') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
        index %= len(dataset)
    return dataset.get_data_info(index)


def _label_map(dataset: Any, info: Mapping[str, Any]) -> np.ndarray:
    """(H, W) classes of an image of mmseg, as its training gets them."""
    steps = getattr(getattr(dataset, 'pipeline', None), 'transforms', ())
    load = next((step for step in steps if type(step).__name__.endswith('LoadAnnotations')),
                None) or TRANSFORMS.build(dict(type='mmseg.LoadAnnotations'))
    return load({'seg_fields': [], 'reduce_zero_label': False, **info})['gt_seg_map']


class SeenImage(NamedTuple):
    """An image as the network sees it, (H, W, 3) uint8 RGB, and its truth on it."""

    image: np.ndarray
    truth: np.ndarray | Instances | None


def seen_images(preprocessor: Any, output: Mapping[str, Any], most: int,
                width: int) -> list[SeenImage]:
    """The first images of a batch after the data preprocessor.

    Args:
        preprocessor: its normalization is taken back.
        output: what the preprocessor gave: inputs (B, C, H, W) and data samples.
        most: images.
        width: of the pictures, at most, in pixels.
    """
    seen = []
    for tensor, sample in list(zip(output['inputs'], output['data_samples'], strict=False))[:most]:
        if tensor.ndim != 3:
            raise ValueError(f'inputs of shape {tuple(tensor.shape)} are no images')
        values = tensor.detach().float()
        if getattr(preprocessor, 'mean', None) is not None:
            values = values * preprocessor.std + preprocessor.mean
        values = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
        pixels = values.clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        turned = getattr(preprocessor, 'channel_conversion',
                         getattr(preprocessor, '_channel_conversion', False))
        # OpenMMLab's loaders give blue first, and the preprocessor turns the channels round.
        image = np.ascontiguousarray(pixels if turned else pixels[..., ::-1])
        seen.append(SeenImage(*_small(image, truth_of(sample, image.shape[:2]), width)))
    return seen


def truth_of(sample: Any, shape: tuple[int, int]) -> np.ndarray | Instances | None:
    """The truth of a data sample: classes (H, W), or objects; None if the sample has none."""
    if 'gt_sem_seg' in sample and 'gt_instances' not in sample:
        return sample.gt_sem_seg.data[0].cpu().numpy()
    if 'gt_instances' not in sample:
        return None
    truth = sample.gt_instances
    boxes = getattr(truth.bboxes, 'tensor', truth.bboxes).detach().cpu().numpy()
    masks = truth.get('masks')
    if masks is not None:
        masks = masks.to_ndarray().astype(bool)
        if masks.shape[1:] != tuple(shape):
            # The images of a batch are padded at the right and below; masks sometimes are not.
            whole = np.zeros((len(masks), *shape), bool)
            masks = masks[:, :shape[0], :shape[1]]
            whole[:, :masks.shape[1], :masks.shape[2]] = masks
            masks = whole
    return Instances(masks, boxes.reshape(-1, 4), truth.labels.cpu().numpy())


class ValidationImages:
    """A few images of a validation, the same each time, and their truth.

    Args:
        dataset: of the validation.
        count: images.
        world_size: processes among which mmengine's sampler deals the images; the images are
            chosen among those of the first process.
        width: of the pictures, at most, in pixels.
    """

    def __init__(self, dataset: Any, count: int, world_size: int, width: int) -> None:
        self.width = width
        self._dataset = dataset
        own = range(0, len(dataset), world_size)
        count = min(count, len(own))
        # The middle of each of `count` equal parts; of images with objects the next one.
        self._infos: dict[str, dict[str, Any]] = {}
        for number in range(count):
            part = own[number * len(own) // count:(number + 1) * len(own) // count]
            candidates = part[len(part) // 2:][:20]
            infos = [info_of(dataset, index) for index in candidates[:1]]
            if 'instances' in infos[0] and not infos[0]['instances']:
                infos += [info_of(dataset, index) for index in candidates[1:]]
            info = next((each for each in infos if each.get('instances')), infos[0])
            self._infos[info['img_path']] = info
        self._images: dict[str, np.ndarray] = {}
        self._truths: dict[str, Instances] = {}

    def __len__(self) -> int:
        return len(self._infos)

    def place(self, output: Any) -> int | None:
        """Which of the images an output of the model is of; None for every other image."""
        path = getattr(output, 'metainfo', {}).get('img_path')
        return list(self._infos).index(path) if path in self._infos else None

    def row(self, output: Any) -> tuple[np.ndarray, Any, Any]:
        """Image, truth and prediction, small; the truth and the prediction are of one kind.

        Raises:
            ValueError: the model predicts neither classes of pixels nor objects.
        """
        path = output.metainfo['img_path']
        if path not in self._images:
            image = mmcv.imfrombytes(read_bytes(
                path, backend_args=getattr(self._dataset, 'backend_args', None)),
                channel_order='rgb')
            self._images[path] = _small(image, None, self.width)[0]
        image = self._images[path]
        size = image.shape[1], image.shape[0]
        if 'pred_sem_seg' in output:
            prediction = _small_label(output.pred_sem_seg.data[0].cpu().numpy(), size)
            truth = (_small_label(output.gt_sem_seg.data[0].cpu().numpy(), size)
                     if 'gt_sem_seg' in output else np.full(prediction.shape, IGNORED))
            return image, truth, prediction
        if 'pred_instances' not in output:
            raise ValueError('the model predicts neither classes of pixels nor objects')
        if path not in self._truths:
            whole = _objects_of(self._infos[path], output.ori_shape)
            self._truths[path] = _small_objects(whole, output.ori_shape, size)
        found = output.pred_instances
        chosen = found.scores.argsort(descending=True)[:_MOST_OBJECTS]
        found = found[chosen[found.scores[chosen] >= SHOWN_SCORE]]
        masks = found.get('masks')
        prediction = Instances(
            masks.cpu().numpy().astype(bool) if hasattr(masks, 'cpu') else None,
            found.bboxes.cpu().numpy().reshape(-1, 4), found.labels.cpu().numpy(),
            found.scores.cpu().numpy())
        return image, self._truths[path], _small_objects(prediction, output.ori_shape, size)


def _objects_of(info: Mapping[str, Any], shape: tuple[int, int]) -> Instances:
    """The true objects of an image of mmdet, in the pixels of its file."""
    objects = info.get('instances', [])
    with_masks = bool(objects) and all('mask' in each for each in objects)
    load = TRANSFORMS.build(dict(type='mmdet.LoadAnnotations', with_bbox=True,
                                 with_mask=with_masks, box_type=None))
    loaded = load({**info, 'ori_shape': shape, 'img_shape': shape})
    return Instances(loaded['gt_masks'].masks.astype(bool) if with_masks else None,
                     loaded['gt_bboxes'].reshape(-1, 4), loaded['gt_bboxes_labels'],
                     crowd=loaded['gt_ignore_flags'])


def _small(image: np.ndarray, truth: np.ndarray | Instances | None,
           width: int) -> tuple[np.ndarray, np.ndarray | Instances | None]:
    """An image that fits a cell of `width` pixels, and its truth at the same size."""
    height, wide = image.shape[:2]
    size = fit(wide, height, width)
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    if isinstance(truth, Instances):
        return small, _small_objects(truth, (height, wide), size)
    return small, None if truth is None else _small_label(truth, size)


def _small_label(label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(label.astype(np.int32)).resize(
        size, Image.Resampling.NEAREST))


def _small_objects(objects: Instances, shape: Sequence[int], size: tuple[int, int]) -> Instances:
    """Objects of an image of `shape` (height, width) in a picture of `size` (width, height)."""
    ratio = np.array([size[0] / shape[1], size[1] / shape[0]] * 2)
    masks = objects.masks
    if masks is not None:
        masks = np.array([np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
                          for mask in masks], bool).reshape(-1, size[1], size[0])
    return objects._replace(masks=masks, boxes=objects.boxes * ratio)
