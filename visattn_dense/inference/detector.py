"""A trained detector or instance segmentor on pictures of any size."""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from visattn_dense.predict import results
from visattn_dense.predict.maps import Read
from visattn_dense.predict.masks import encode
from visattn_dense.predict.merge import Found, merged
from visattn_dense.predict.sources import Picture
from visattn_dense.predict.stream import Options
from visattn_dense.predict.tiles import Window, computed, windows_of

from .preparation import Preparation, PreparedPicture


@dataclass
class Detector:
    """A model with the preparation of its images, its class names and colours.

    Attributes:
        result: the kind of the results.
        model: mmdet's detector (or its DetTTAModel), in evaluation mode on its device.
        pipeline: from a picture to the model's input.
        classes, palette: name and RGB triple of each class.
        has_masks: the model gives a mask for each object.
        mode: 'whole', or 'tiles': windows of the picture itself, whose objects are put together.
        crop, stride: (H, W) of the windows and of their steps, in pixels of the picture.
    """

    result: ClassVar = results.Detection
    model: nn.Module
    pipeline: Preparation
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    has_masks: bool = False
    mode: str = 'whole'
    crop: tuple[int, int] = (1024, 1024)
    stride: tuple[int, int] = (768, 768)

    def prepare(self, picture: Picture) -> PreparedPicture:
        """Load and resize a picture, as the config says.

        Raises:
            UserError: the picture is not an image, or is damaged.
        """
        return self.pipeline.loaded(picture) if self.mode == 'tiles' else self.pipeline(picture)

    @torch.inference_mode()
    def run(self, batch: Sequence[PreparedPicture]) -> list[Any]:
        """OpenMMLab's `pred_instances` of each picture, at the size of the picture."""
        if not batch[0].inputs:
            # A picture that is only loaded: `finish` computes its windows.
            return [None] * len(batch)
        versions = range(len(batch[0].inputs))
        inputs = [[prepared.inputs[v] for prepared in batch] for v in versions]
        samples = [[prepared.samples[v] for prepared in batch] for v in versions]
        if len(versions) == 1:
            inputs, samples = inputs[0], samples[0]
        found = self.model.test_step(dict(inputs=inputs, data_samples=samples))
        return [sample.pred_instances for sample in found]

    @torch.inference_mode()
    def finish(self, prepared: PreparedPicture, output: Any, options: Options
               ) -> results.Detection:
        """Keep the objects that `options` ask for, those of high scores first."""
        size, model_size = prepared.image.shape[:2], prepared.model_size
        if self.mode == 'tiles':
            fields = self.objects(size, lambda window: prepared.image[
                slice(*window[0]), slice(*window[1])], options)
            model_size = tuple(map(min, self.crop, size))
        else:
            found = self._found(((0, size[0]), (0, size[1])), output, options)
            fields = _fields(found, size, options.max_det)
        return results.Detection(
            **results.about(prepared.picture), image=prepared.image, model_size=model_size,
            classes=self.classes, palette=self.palette, **fields)

    def objects(self, size: tuple[int, int], read: Read, options: Options,
                progress: Callable[[int], object] = lambda rows: None) -> dict[str, Any]:
        """The objects of a picture of any size, found window by window and put together.

        Args:
            size: (H, W) of the picture.
            read: gives the pixels of a window, (h, w, 3) uint8 RGB.
            options: of the results.
            progress: called with the number of picture rows that are done now.

        Returns:
            The fields boxes, scores, labels and rles of a `Detection`.
        """
        windows = windows_of(size, self.crop, self.stride)
        outputs = computed(
            windows, lambda window: self.pipeline(Picture('window', data=read(window))),
            self.run, options.batch_size)
        parts, done = [], 0
        for window, output in zip(windows, outputs, strict=True):
            parts.append(self._found(window, output, options))
            if window[1][1] == size[1]:
                progress(window[0][1] - done)
                done = window[0][1]
        return _fields(merged(parts, size), size, options.max_det)

    def _found(self, window: Window, output: Any, options: Options) -> Found:
        """The wanted objects of a window, those of high scores first."""
        scores = output.scores.float().cpu().numpy()
        labels = output.labels.cpu().numpy().astype(np.int64)
        order = options.wanted(scores, labels)
        (top, _), (left, _) = window
        boxes = output.bboxes.float().cpu().numpy().reshape(-1, 4)[order]
        # One after another: all masks of a large picture in NumPy would be twice in memory.
        masks = [_part(np.asarray(output.masks[int(i)].cpu(), bool), top, left) for i in order
                 ] if self.has_masks else None
        return Found(window, boxes + np.array([left, top, left, top], np.float32), scores[order],
                     labels[order], masks)


def _part(mask: np.ndarray, top: int, left: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The part around a mask, and the place of the part's first pixel in the picture."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not rows.size:
        return np.zeros((0, 0), bool), (top, left)
    part = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1].copy()
    return part, (top + int(rows[0]), left + int(columns[0]))


def _fields(found: Found, size: tuple[int, int], most: int | None) -> dict[str, Any]:
    return dict(boxes=found.boxes[:most].astype(np.float32),
                scores=found.scores[:most].astype(np.float32), labels=found.labels[:most],
                rles=None if found.masks is None else [
                    encode(mask, at, size) for mask, at in found.masks[:most]])
