"""An exported detector or instance segmentor: its boxes and masks at the size of the picture."""
from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .fitting import ExportedModel, Ready
from .masks import Rle, encode
from .results import Detection, about
from .stream import Options


class ExportedDetector(ExportedModel):
    """An exported detector: from inputs and content to [boxes, scores, labels], and masks of an
    instance segmentor; see `visattn_dense.openmmlab.detection_graph`."""

    result = Detection

    def run(self, batch: Sequence[Ready]) -> list[Sequence[np.ndarray]]:
        """The model's outputs for each picture. The file takes one picture at a time."""
        return [self.compute(ready.inputs, np.array(ready.content, np.int64)) for ready in batch]

    def finish(self, prepared: Ready, output: Sequence[np.ndarray], options: Options) -> Detection:
        """Keep the objects that `options` ask for, those of high scores first."""
        boxes, scores, labels, *masks = output
        size = prepared.image.shape[:2]
        order = options.wanted(scores, labels)[:options.max_det]
        scale = np.array(prepared.content[::-1], np.float32) / np.array(size[::-1], np.float32)
        boxes = boxes[order].astype(np.float32) / np.tile(scale, 2)
        rles = [paste(masks[0][i], box, size, self.card.thresholds['mask'])
                for i, box in zip(order, boxes, strict=True)] if masks else None
        return Detection(
            **about(prepared.picture), image=prepared.image,
            model_size=prepared.content, classes=self.classes, palette=self.palette,
            boxes=boxes, scores=scores[order].astype(np.float32),
            labels=labels[order].astype(np.int64), rles=rles)


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int], threshold: float) -> Rle:
    """The mask of an object in its picture, from its probabilities inside its box.

    The probability at a pixel's centre is bilinear between the centres of the cells, and falls to
    0 outside, as in mmdetection.

    Args:
        mask: (h, w) probabilities.
        box: x1, y1, x2, y2 in pixels of the picture.
        size: (H, W) of the picture.
        threshold: the least probability of a pixel of the object.
    """
    x1, y1, x2, y2 = box.astype(np.float32)
    top, left = (max(int(np.floor(side)) - 1, 0) for side in (y1, x1))
    bottom, right = (min(int(np.ceil(side)) + 1, most)
                     for side, most in zip((y2, x2), size, strict=True))
    rows = _weights(np.arange(top, bottom), y1, y2, mask.shape[0])
    columns = _weights(np.arange(left, right), x1, x2, mask.shape[1])
    inside = rows @ mask.astype(np.float32) @ columns.T >= threshold
    return encode(inside, (top, left), size)


def _weights(pixels: np.ndarray, low: np.float32, high: np.float32, cells: int) -> np.ndarray:
    """(n, cells): the weight of each cell between `low` and `high` at each pixel."""
    with np.errstate(divide='ignore', invalid='ignore'):
        place = (pixels.astype(np.float32) + np.float32(0.5) - low) / (high - low) * 2 - 1
    # A box without extent shows the middle of its mask.
    place[~np.isfinite(place)] = 0
    place = ((place + 1) * cells - 1) / 2
    return (1 - np.abs(place[:, None] - np.arange(cells, dtype=np.float32))).clip(0)
