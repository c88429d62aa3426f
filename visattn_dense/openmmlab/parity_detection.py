"""Whether the exported file of a detector finds what the model finds.

Two objects are matched if class, box, mask and score agree. NMS decides by thresholds, so a
rounding error may add or remove an object: nearly all must be matched, and the objects at the
lowest scores, between which the thresholds decide, do not count.
"""
from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from mmdet.structures import DetDataSample

from visattn_dense.inference.detector import Detector
from visattn_dense.inference.preparation import PreparedPicture
from visattn_dense.openmmlab.parity import input_size, padded, pixels_for_model
from visattn_dense.predict.exported import ExportedDetector
from visattn_dense.predict.fitting import Ready
from visattn_dense.predict.results import Detection
from visattn_dense.predict.sources import Picture
from visattn_dense.predict.stream import Options


@dataclass
class Tolerance:
    """How much a matched object may differ.

    Attributes:
        score: of the scores.
        overlap: the least IoU of the boxes, and of the masks (but two pixels are always free).
        share: the least share of objects that are matched.
    """

    score: float = 1e-3
    overlap: float = 0.98
    share: float = 0.98


FULL, HALF = Tolerance(), Tolerance(0.05, 0.8, 0.8)


@dataclass
class DetectionParity:
    """The comparison on some pictures.

    Attributes:
        pictures: their number.
        sizes: (H, W) of the model's inputs.
        objects: found by the model, by the file, of those that count.
        matched: pairs of them.
        coordinate, score: the largest difference of the matched boxes, in pixels of the picture,
            and scores.
        mask: the lowest IoU of matched masks; None without masks.
        seconds: of the model and of the file, for one picture, the fastest.
    """

    pictures: int = 0
    sizes: list[tuple[int, int]] | None = None
    objects: tuple[int, int] = (0, 0)
    matched: int = 0
    coordinate: float = 0.
    score: float = 0.
    mask: float | None = None
    seconds: tuple[float, float] = (np.inf, np.inf)

    def fault(self, half: bool = False) -> str | None:
        """What is wrong, or None."""
        if not max(self.objects):
            return ('neither finds an object, so nothing was compared: name pictures that show '
                    'objects with --images')
        least = (HALF if half else FULL).share
        if self.matched < least * max(self.objects):
            return (f'{self.matched} objects are matched, the model finds {self.objects[0]} and '
                    f'the file {self.objects[1]}')
        return None

    def report(self) -> str:
        sizes = ', '.join(f'{h}x{w}' for h, w in dict.fromkeys(self.sizes or []))
        model, file = self.seconds
        masks = '' if self.mask is None else f', the lowest IoU of masks {self.mask:.4f}'
        return (f'parity on {self.pictures} pictures (model inputs of {sizes}): {self.matched} '
                f'objects matched of {self.objects[0]} of the model and {self.objects[1]} of the '
                f'file; largest difference of boxes {self.coordinate:.2g} pixels, of scores '
                f'{self.score:.2g}{masks}; the model takes {model:.3f} s, the file {file:.3f} s')


@torch.inference_mode()
def compare_detectors(detector: Detector, exported: ExportedDetector, pictures: Iterable[Picture],
                      half: bool = False) -> DetectionParity:
    """Find the objects of the same inputs with mmdet's own `predict` and with the file.

    Args:
        half: the file computes in float16, and matched objects may differ more.

    Raises:
        UserError: a picture cannot be read.
    """
    total = DetectionParity(sizes=[])
    everything, tolerance = Options(conf=0.), HALF if half else FULL
    for picture in pictures:
        ready = exported.prepare(picture)
        begun = time.perf_counter()
        reference = _predicted(detector, exported, ready, everything)
        between = time.perf_counter()
        (output,) = exported.run([ready])
        found = exported.finish(ready, output, everything)
        seconds = (between - begun, time.perf_counter() - between)
        total.seconds = tuple(map(min, total.seconds, seconds))
        total.pictures += 1
        total.sizes.append(input_size(ready, exported.card))
        _match(reference, found, exported.card.max_per_image, tolerance, total)
    return total


def _predicted(detector: Detector, exported: ExportedDetector, ready: Ready, options: Options
               ) -> Detection:
    card, size = exported.card, ready.image.shape[:2]
    pixels = pixels_for_model(ready.image, card)
    height, width = ready.content
    sample = DetDataSample(metainfo=dict(
        img_shape=ready.content, ori_shape=size,
        scale_factor=(width / size[1], height / size[0])))
    data = detector.model.data_preprocessor(dict(inputs=[pixels], data_samples=[sample]), False)
    inputs = padded(data['inputs'], input_size(ready, card))
    (found,) = detector.model.predict(inputs, data['data_samples'], rescale=True)
    prepared = PreparedPicture(ready.picture, ready.image, [inputs[0]], [sample])
    return replace(detector, mode='whole').finish(prepared, found.pred_instances, options)


def _match(model: Detection, file: Detection, most: int | None, tolerance: Tolerance,
           total: DetectionParity) -> None:
    """Match objects, best first, and add to the sums."""
    # Where the file is full, the objects of the last score decide who is in.
    least = [scores[-1] + tolerance.score if len(scores) == most else 0.
             for scores in (model.scores, file.scores)]
    counted = [int((result.scores > max(least)).sum()) for result in (model, file)]
    total.objects = tuple(a + b for a, b in zip(total.objects, counted, strict=True))
    free = np.ones(len(file), bool)
    for i in range(counted[0]):
        overlaps = np.where(free & (file.labels == model.labels[i]),
                            _overlaps(model.boxes[i], file.boxes), -1)
        j = int(overlaps.argmax()) if len(overlaps) else -1
        if j < 0 or overlaps[j] < tolerance.overlap:
            continue
        score = abs(float(model.scores[i]) - float(file.scores[j]))
        iou, apart = _masks(model, i, file, j)
        if not score <= tolerance.score or (iou < tolerance.overlap and apart > 2):
            continue
        free[j] = False
        total.matched += 1
        total.score = max(total.score, score)
        total.coordinate = max(total.coordinate,
                               float(np.abs(model.boxes[i] - file.boxes[j]).max()))
        if model.rles is not None:
            total.mask = min(1. if total.mask is None else total.mask, iou)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(N,) IoUs of a box with boxes; equal boxes have 1, also without area."""
    meet = (np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])).clip(0).prod(1)
    union = (box[2:] - box[:2]).prod() + (boxes[:, 2:] - boxes[:, :2]).prod(1) - meet
    return np.where(np.abs(boxes - box).max(1) < 1e-2, 1., meet / np.maximum(union, 1e-9))


def _masks(model: Detection, i: int, file: Detection, j: int) -> tuple[float, int]:
    """IoU of two masks, and the number of pixels that differ."""
    if model.rles is None or model.rles[i] == file.rles[j]:
        return 1., 0
    from visattn_dense.predict.masks import decode
    one, other = decode(model.rles[i]), decode(file.rles[j])
    return float((one & other).sum() / max(1, (one | other).sum())), int((one ^ other).sum())
