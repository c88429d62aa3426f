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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.errors import UserError

_CLASSES_AT_ONCE = 8


@dataclass
class Segmentor:
    """A model with the preparation of its images, its class names and colours.

    Attributes:
        model: mmseg's EncoderDecoder, in evaluation mode on its device.
        pipeline: a function from dict(img_path=...) to the model's input.
        classes, palette: name and RGB triple of each class.
        mode: 'whole' or 'slide'.
        crop, stride: (H, W) of the windows and of their steps, in pixels of the prepared image.
        gather: the device on which the windows' logits are summed.
    """

    model: nn.Module
    pipeline: Callable[[dict[str, Any]], dict[str, Any]]
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    mode: str = 'whole'
    crop: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    gather: str | torch.device = 'cpu'

    @torch.inference_mode()
    def label(self, path: str | os.PathLike) -> np.ndarray:
        """The class index of each pixel: (H, W), uint8 (uint16 beyond 256 classes).

        Raises:
            UserError: the file is not an image, or is damaged.
        """
        try:
            prepared = self.pipeline(dict(img_path=os.fspath(path)))
        except (OSError, ValueError, AttributeError, AssertionError) as error:
            # mmcv asserts that OpenCV can read the image.
            raise UserError(f'{path} cannot be read as an image: {error}') from error
        sample = prepared['data_samples']
        batch = self.model.data_preprocessor(
            dict(inputs=[prepared['inputs']], data_samples=[sample]), False)
        inputs, meta = batch['inputs'], dict(sample.metainfo)
        logits = (self._slide(inputs, meta) if self.mode == 'slide' else
                  self.model.encode_decode(inputs, [dict(meta, pad_shape=inputs.shape[2:])]))
        return _decide(logits, meta['ori_shape'][:2], self.model.align_corners,
                       getattr(self.model.decode_head, 'threshold', None))

    def _slide(self, inputs: Tensor, meta: Mapping[str, Any]) -> Tensor:
        """Mean logits of overlapping windows: (1, C, H, W) on `gather`."""
        height, width = inputs.shape[2:]
        total = None
        counts = torch.zeros(height, width, device=self.gather)
        for y1, y2 in window_spans(height, self.crop[0], self.stride[0]):
            for x1, x2 in window_spans(width, self.crop[1], self.stride[1]):
                window = inputs[:, :, y1:y2, x1:x2]
                # mmseg's heads take the size of a window from `img_shape`, as a torch.Size.
                logits = self.model.encode_decode(
                    window, [dict(meta, img_shape=window.shape[2:])]).to(self.gather)
                if total is None:
                    total = logits.new_zeros(1, logits.shape[1], height, width)
                total[:, :, y1:y2, x1:x2] += logits
                counts[y1:y2, x1:x2] += 1
        return total.div_(counts)


def window_spans(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of windows that cover `length`. The last one ends at `length`, as in mmseg."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, length) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def _decide(logits: Tensor, size: tuple[int, int], align_corners: bool,
            threshold: float | None) -> np.ndarray:
    """The best class at each pixel of (H, W) = `size`, from (1, C, h, w) logits.

    A few classes at a time are resized and compared with the best class so far, so no tensor of
    (C, H, W) is in memory.
    """
    channels = logits.shape[1]
    best = torch.full(size, -torch.inf, device=logits.device)
    label = torch.zeros(size, dtype=torch.int16, device=logits.device)
    for first in range(0, channels, _CLASSES_AT_ONCE):
        part = F.interpolate(logits[:, first:first + _CLASSES_AT_ONCE].float(), size,
                             mode='bilinear', align_corners=align_corners)[0]
        if channels == 1:
            # One sigmoid channel: class 1 where it is above the head's threshold; mmseg's default.
            label = (part[0].sigmoid() > (0.3 if threshold is None else threshold)).to(label.dtype)
            break
        values, winners = part.max(0)
        better = values > best
        best = torch.where(better, values, best)
        label = torch.where(better, (winners + first).to(label.dtype), label)
    return label.cpu().numpy().astype(np.uint8 if channels <= 256 else np.uint16)
