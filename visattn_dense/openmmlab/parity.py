"""Whether the exported file of a segmentor computes what the model computes.

For detectors: `parity_detection` beside this file.
"""
from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from visattn_dense.inference.segmentor import Segmentor
from visattn_dense.predict.card import Card
from visattn_dense.predict.exported import ExportedSegmentor
from visattn_dense.predict.fitting import Ready, prepare
from visattn_dense.predict.sources import Picture


@dataclass
class Parity:
    """The comparison on some pictures.

    Attributes:
        pictures: their number.
        sizes: (H, W) of the model's inputs.
        difference: the largest one of the logits; of the probabilities if the file gives labels.
        scale: the largest absolute value of what is compared.
        equal: share of equal labels, from 0 to 1, in the picture with the fewest.
        seconds: of the model and of the file, for one picture, the fastest.
    """

    pictures: int
    sizes: list[tuple[int, int]]
    difference: float
    scale: float
    equal: float
    seconds: tuple[float, float]

    def fault(self, half: bool = False, int8: bool = False) -> str | None:
        """What is wrong, or None. Of 8 bits, the labels count, not the logits."""
        most, least = (np.inf, 0.9) if int8 else (0.05, 0.98) if half else (1e-3, 0.999)
        if not self.difference <= most * self.scale:
            return (f'the largest difference is {self.difference:.2g}, more than {most:g} of the '
                    f'largest value {self.scale:.3g}')
        if self.equal < least:
            return f'{self.equal:.2%} of the labels are equal, fewer than {least:.1%}'
        return None

    def report(self) -> str:
        sizes = ', '.join(f'{h}x{w}' for h, w in dict.fromkeys(self.sizes))
        model, file = self.seconds
        return (f'parity on {self.pictures} pictures (model inputs of {sizes}): largest difference '
                f'{self.difference:.2g} (largest value {self.scale:.3g}), {self.equal:.3%} of the '
                f'labels equal; the model takes {model:.3f} s, the file {file:.3f} s')


@torch.inference_mode()
def compare(segmentor: Segmentor, exported: ExportedSegmentor, pictures: Iterable[Picture]
            ) -> Parity:
    """Compute the same inputs with the model, through its own data_preprocessor, and the file.

    Raises:
        UserError: a picture cannot be read.
    """
    card = exported.card
    found = Parity(0, [], 0., 0., 1., (np.inf, np.inf))
    for picture in pictures:
        ready = exported.prepare(picture)
        pixels = pixels_for_model(ready.image, card)
        size = input_size(ready, card)
        begun = time.perf_counter()
        logits = _logits(segmentor, pixels, size)
        between = time.perf_counter()
        output = exported.compute(ready.inputs)
        seconds = (between - begun, time.perf_counter() - between)
        labels, confidence = _labels(logits, segmentor.threshold)
        if card.pre_and_post:
            got, compared, reference = output[0][0], output[1][0], confidence
        else:
            got, _ = _labels(torch.from_numpy(output[0]), segmentor.threshold)
            compared, reference = output[0], logits.numpy()
        found.pictures += 1
        found.sizes.append(size)
        difference = np.abs(compared - reference).max()
        # A maximum of Python forgets NaN.
        found.difference = float(np.maximum(found.difference, difference))
        found.scale = max(found.scale, float(np.abs(reference).max()))
        found.equal = min(found.equal, float((got == labels).mean()))
        found.seconds = tuple(map(min, found.seconds, seconds))
    return found


def input_size(ready: Ready, card: Card) -> tuple[int, int]:
    """(H, W) of the file's input."""
    return tuple(ready.inputs.shape[1:3] if card.pre_and_post else ready.inputs.shape[2:])


def pixels_for_model(image: np.ndarray, card: Card) -> torch.Tensor:
    """(3, h, w) uint8 in BGR, as OpenMMLab's loaders give them, for (H, W, 3) uint8 RGB.

    The padding is that of the file if the file takes pixels, else there is none: `padded` adds it.
    """
    pixels, (height, width) = prepare(image, replace(card, pre_and_post=True))
    pixels = pixels[0] if card.pre_and_post else pixels[0, :height, :width]
    pixels = pixels if card.channels == 'bgr' else pixels[..., ::-1]
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def padded(inputs: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(..., h, w), normalised, zero-padded to (H, W)."""
    return F.pad(inputs, (0, size[1] - inputs.shape[-1], 0, size[0] - inputs.shape[-2]))


def _logits(segmentor: Segmentor, pixels: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """(1, C, H, W) for pixels (3, h, w)."""
    from mmseg.structures import SegDataSample
    # A preprocessor with a `test_cfg` notes on the sample what it pads.
    inputs = segmentor.model.data_preprocessor(
        dict(inputs=[pixels], data_samples=[SegDataSample()]), False)['inputs']
    if isinstance(inputs, (list, tuple)):
        inputs = torch.stack(list(inputs))
    inputs = padded(inputs, size)
    return segmentor.model.encode_decode(
        inputs, [dict(img_shape=size, ori_shape=size, pad_shape=size)]).float()


def _labels(logits: torch.Tensor, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """(H, W) labels and their probabilities."""
    if logits.shape[1] == 1:
        positive = logits[0, 0].sigmoid()
        labels = positive > threshold
        return labels.numpy(), torch.where(labels, positive, 1 - positive).numpy()
    confidence, labels = logits[0].softmax(0).max(0)
    return labels.numpy(), confidence.numpy()
