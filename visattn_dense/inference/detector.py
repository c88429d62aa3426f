"""A trained detector or instance segmentor on pictures of any size."""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from visattn_dense.predict import results
from visattn_dense.predict.masks import encode
from visattn_dense.predict.sources import Picture
from visattn_dense.predict.stream import Options

from .preparation import Preparation, PreparedPicture

LEAST_SCORE = 0.3
"""Objects of a lower score are left out, unless `conf` says otherwise."""


@dataclass
class Detector:
    """A model with the preparation of its images, its class names and colours.

    Attributes:
        model: mmdet's detector (or its DetTTAModel), in evaluation mode on its device.
        pipeline: from a picture to the model's input.
        classes, palette: name and RGB triple of each class.
        has_masks: the model gives a mask for each object.
        half: the dtype of autocast; None for the dtype of the weights.
    """

    model: nn.Module
    pipeline: Preparation
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    has_masks: bool = False
    half: torch.dtype | None = None

    def prepare(self, picture: Picture) -> PreparedPicture:
        """Load and resize a picture, as the config says.

        Raises:
            UserError: the picture is not an image, or is damaged.
        """
        return self.pipeline(picture)

    @torch.inference_mode()
    def run(self, batch: Sequence[PreparedPicture]) -> list[Any]:
        """OpenMMLab's `pred_instances` of each picture, at the size of the picture."""
        versions = range(len(batch[0].inputs))
        inputs = [[prepared.inputs[v] for prepared in batch] for v in versions]
        samples = [[prepared.samples[v] for prepared in batch] for v in versions]
        if len(versions) == 1:
            inputs, samples = inputs[0], samples[0]
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, self.half, enabled=self.half is not None):
            found = self.model.test_step(dict(inputs=inputs, data_samples=samples))
        return [sample.pred_instances for sample in found]

    @torch.inference_mode()
    def finish(self, prepared: PreparedPicture, output: Any, options: Options
               ) -> results.Detection:
        """Keep the objects that `options` ask for, those of high scores first."""
        scores = output.scores.float().cpu().numpy()
        labels = output.labels.cpu().numpy().astype(np.int64)
        kept = scores >= (LEAST_SCORE if options.conf is None else options.conf)
        if options.classes is not None:
            kept &= np.isin(labels, options.classes)
        order = np.argsort(-scores, kind='stable')
        order = order[kept[order]][:options.max_det]
        # One after another: all masks of a large picture in NumPy would be twice in memory.
        rles = ([encode(np.asarray(output.masks[int(i)].cpu(), bool)) for i in order]
                if self.has_masks else None)
        return results.Detection(
            **results.about(prepared.picture), image=prepared.image,
            model_size=prepared.model_size, classes=self.classes, palette=self.palette,
            boxes=output.bboxes.float().cpu().numpy().reshape(-1, 4)[order], scores=scores[order],
            labels=labels[order], rles=rles)
