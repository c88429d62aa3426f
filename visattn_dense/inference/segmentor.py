"""A trained segmentor on images of any size: whole, or window by window with bounded memory.

    label = segmentor.label('photo.jpg')        # (H, W) class indices, at the size of the file

`visattn_dense.openmmlab.inference.open_segmentor` makes one from a config and a checkpoint.

`whole` and `slide` give the same result as mmseg's test. But with `slide` the logits of the windows
are summed on the device `gather`, which has enough memory, and not on the GPU. The logits are
resized to the size of the file a few classes at a time. Otherwise a picture of 4000×3000 with 150
classes would need 7 GB twice.
"""
from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.errors import UserError
from visattn_dense.predict import results
from visattn_dense.predict.maps import Read
from visattn_dense.predict.sources import Picture
from visattn_dense.predict.stream import Options
from visattn_dense.predict.tiles import blended_bands, computed, window_spans, windows_of

from .preparation import Preparation, PreparedPicture

_CLASSES_AT_ONCE = 8


@dataclass
class Segmentor:
    """A model with the preparation of its images, its class names and colours.

    Attributes:
        result: the kind of the results.
        model: mmseg's EncoderDecoder, in evaluation mode on its device.
        pipeline: from a picture to the model's input.
        classes, palette: name and RGB triple of each class.
        mode: 'whole', 'slide', or 'tiles': windows of the picture itself, blended without a seam.
        crop, stride: (H, W) of the windows and of their steps, in pixels of the prepared image.
        gather: the device on which the windows' logits are summed or blended.
        half: the dtype of autocast; None for the dtype of the weights.
    """

    result: ClassVar = results.Segmentation
    model: nn.Module
    pipeline: Preparation
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    mode: str = 'whole'
    crop: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    gather: str | torch.device = 'cpu'
    half: torch.dtype | None = None

    def label(self, path: str | os.PathLike) -> np.ndarray:
        """The class index of each pixel: (H, W), uint8 (uint16 from 256 classes on).

        Raises:
            UserError: the file is not an image, or is damaged.
        """
        prepared = self.prepare(Picture('', os.fspath(path)))
        return self.finish(prepared, self.run([prepared])[0], Options()).labels

    def prepare(self, picture: Picture) -> PreparedPicture:
        """Load and resize a picture, as the config says.

        Raises:
            UserError: the picture is not an image, or is damaged.
        """
        return self.pipeline.loaded(picture) if self.mode == 'tiles' else self.pipeline(picture)

    @torch.inference_mode()
    def run(self, batch: Sequence[PreparedPicture]) -> list[list[Tensor]]:
        """Logits of pictures of one size: for each picture, and each of its versions, (1, C, h, w).
        """
        # A picture that is only loaded has no versions: `finish` computes its windows.
        outputs: list[list[Tensor]] = [[] for _ in batch]
        for version in range(len(batch[0].inputs)):
            data = self.model.data_preprocessor(dict(
                inputs=[prepared.inputs[version] for prepared in batch],
                data_samples=[prepared.samples[version] for prepared in batch]), False)
            # The preprocessor notes on its own copies what it has padded.
            samples = data['data_samples']
            logits = self._logits(data['inputs'], [dict(sample.metainfo) for sample in samples])
            for output, sample, own in zip(outputs, samples, logits.split(1), strict=True):
                left, right, top, bottom = sample.metainfo.get('img_padding_size', (0, 0, 0, 0))
                height, width = own.shape[2:]
                output.append(own[:, :, top:height - bottom, left:width - right])
        return outputs

    @torch.inference_mode()
    def finish(self, prepared: PreparedPicture, output: Sequence[Tensor], options: Options
               ) -> results.Segmentation:
        """Decide on the class of each pixel of the picture."""
        size = prepared.image.shape[:2]
        if self.mode == 'tiles':
            return self._tiled(prepared, options)
        decision = (self._decide(output[0], size, options) if len(output) == 1 else
                    self._decide_mean(output, prepared, options))
        return results.Segmentation(
            **results.about(prepared.picture), image=prepared.image,
            model_size=prepared.model_size, classes=self.classes, palette=self.palette,
            **decision._asdict())

    def bands(self, size: tuple[int, int], read: Read, options: Options) -> Iterator[np.ndarray]:
        """Labels of a picture of any height, in the memory of a row of windows.

        Args:
            size: (H, W) of the picture.
            read: gives the pixels of a window, (h, w, 3) uint8 RGB.
            options: of the results.

        Yields:
            (h, W) labels from the top to the bottom.

        Raises:
            UserError: the scores are asked for, or several versions of each window are computed.
        """
        if options.scores:
            raise UserError('scores: those of a picture in tiles are not kept; use another mode')
        place = torch.device(self.gather)
        scores = computed(
            windows_of(size, self.crop, self.stride),
            lambda window: self.pipeline(Picture('window', data=read(window))),
            self._scores, options.batch_size)
        return blended_bands(
            size, self.crop, self.stride, scores,
            lambda part: self._decide(part[None], part.shape[1:], options).labels,
            lambda weights: torch.from_numpy(weights).to(place))

    def _tiled(self, prepared: PreparedPicture, options: Options) -> results.Segmentation:
        image = prepared.image
        size = image.shape[:2]
        bands = self.bands(size, lambda window: image[slice(*window[0]), slice(*window[1])],
                           options)
        return results.Segmentation(
            **results.about(prepared.picture), image=image, classes=self.classes,
            palette=self.palette, labels=np.concatenate(list(bands)),
            model_size=tuple(map(min, self.crop, size)),
            ignored=255 if len(self.classes) < 256 else 65535)

    def _scores(self, batch: Sequence[PreparedPicture]) -> list[Tensor]:
        """Logits of windows at the size of the windows: (C, h, w) on `gather`."""
        found = []
        for prepared, (logits, *_) in zip(batch, self.run(batch), strict=True):
            size, logits = prepared.image.shape[:2], logits.to(self.gather).float()
            if logits.shape[2:] != size:
                logits = F.interpolate(logits, size, mode='bilinear',
                                       align_corners=self.model.align_corners)
            found.append(logits[0])
        return found

    def _logits(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        if self.mode == 'slide':
            return self._slide(inputs, metas)
        return self._encode_decode(inputs, [dict(meta, pad_shape=inputs.shape[2:])
                                            for meta in metas])

    def _encode_decode(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        with torch.autocast(inputs.device.type, self.half, enabled=self.half is not None):
            return self.model.encode_decode(inputs, metas)

    def _slide(self, inputs: Tensor, metas: list[dict[str, Any]]) -> Tensor:
        """Mean logits of overlapping windows: (B, C, H, W) on `gather`."""
        height, width = inputs.shape[2:]
        total = None
        counts = torch.zeros(height, width, device=self.gather)
        for y1, y2 in window_spans(height, self.crop[0], self.stride[0]):
            for x1, x2 in window_spans(width, self.crop[1], self.stride[1]):
                window = inputs[:, :, y1:y2, x1:x2]
                # mmseg's heads take the size of a window from `img_shape`, as a torch.Size.
                logits = self._encode_decode(
                    window, [dict(meta, img_shape=window.shape[2:]) for meta in metas]
                ).to(self.gather).float()
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                total[:, :, y1:y2, x1:x2] += logits
                counts[y1:y2, x1:x2] += 1
        return total.div_(counts)

    def _decide(self, logits: Tensor, size: tuple[int, int], options: Options) -> Decision:
        return decide(logits, size, self.model.align_corners, self.threshold, options)

    def _decide_mean(self, outputs: Sequence[Tensor], prepared: PreparedPicture, options: Options
                     ) -> Decision:
        """By the mean of the versions' probabilities at the size of the picture, as mmseg does."""
        size, mean = prepared.image.shape[:2], None
        for logits, sample in zip(outputs, prepared.samples, strict=True):
            if sample.metainfo.get('flip'):
                axis = 3 if sample.metainfo['flip_direction'] == 'horizontal' else 2
                logits = logits.flip(axis)
            logits = F.interpolate(logits.float(), size, mode='bilinear',
                                   align_corners=self.model.align_corners)
            part = logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(1)
            mean = part if mean is None else mean.add_(part)
        mean /= len(outputs)
        # What `decide` takes: log p has the softmax p; the logit of p has the sigmoid p.
        mean = mean.logit() if mean.shape[1] == 1 else mean.log()
        return self._decide(mean, size, options)

    @property
    def threshold(self) -> float:
        """The sigmoid of one channel from which on a pixel is of class 1; mmseg's default."""
        threshold = getattr(self.model.decode_head, 'threshold', None)
        return 0.3 if threshold is None else threshold


class Decision(NamedTuple):
    """labels (H, W), the value of pixels without a class, and scores (C, H, W) or None."""

    labels: np.ndarray
    ignored: int
    scores: np.ndarray | None


def decide(logits: Tensor, size: tuple[int, int], align_corners: bool, threshold: float,
           options: Options) -> Decision:
    """The best class at each pixel of (H, W) = `size`, from (1, C, h, w) logits.

    A few classes at a time are resized and compared with the best class so far, so no tensor of
    (C, H, W) is in memory, unless the scores are asked for.

    Args:
        logits: of C classes, or of one sigmoid channel, which decides between classes 0 and 1.
        size: of the picture.
        align_corners: of the resizing.
        threshold: the sigmoid from which on a pixel is of class 1.
        options: which classes count, from which probability on, and whether scores are wanted.
    """
    channels = logits.shape[1]
    if channels == 1:
        part = F.interpolate(logits.float(), size, mode='bilinear',
                             align_corners=align_corners)[0].sigmoid()
        label = (part[0] > threshold).to(torch.int16)
        probability = torch.where(label > 0, part[0], 1 - part[0])
        scores = torch.cat([1 - part, part]).half().cpu().numpy() if options.scores else None
    else:
        best = torch.full(size, -torch.inf, device=logits.device)
        label = torch.zeros(size, dtype=torch.int16, device=logits.device)
        total = torch.full(size, -torch.inf, device=logits.device)
        # Without them, no pixel needs the sum over all classes.
        needs_total = options.scores or options.conf is not None
        parts = []
        for first in range(0, channels, _CLASSES_AT_ONCE):
            part = F.interpolate(logits[:, first:first + _CLASSES_AT_ONCE].float(), size,
                                 mode='bilinear', align_corners=align_corners)[0]
            values, winners = part.max(0)
            better = values > best
            best = torch.where(better, values, best)
            label = torch.where(better, (winners + first).to(label.dtype), label)
            if needs_total:
                total = torch.logaddexp(total, part.logsumexp(0))
            if options.scores:
                parts.append(part)
        probability = (best - total).exp() if needs_total else None
        scores = (np.concatenate([(part - total).exp().half().cpu().numpy() for part in parts])
                  if options.scores else None)
    labels = label.cpu().numpy().astype(np.uint8 if channels < 256 else np.uint16)
    ignored = 255 if channels < 256 else 65535
    if options.conf is not None:
        labels[(probability < options.conf).cpu().numpy()] = ignored
    if options.classes is not None:
        labels[~np.isin(labels, options.classes)] = ignored
    return Decision(labels, ignored, scores)
