"""Whether an exported file computes what the model computes."""
from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch

from visattn_dense.inference.segmentor import Segmentor
from visattn_dense.predict.exported import ExportedSegmentor, prepare
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

    def fault(self, half: bool = False) -> str | None:
        """What is wrong, or None."""
        most, least = (0.05, 0.98) if half else (1e-3, 0.999)
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
        pixels, _ = prepare(ready.image, replace(card, pre_and_post=True))
        begun = time.perf_counter()
        logits = _logits(segmentor, pixels if card.channels == 'bgr' else pixels[..., ::-1])
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
        found.sizes.append(tuple(pixels.shape[1:3]))
        difference = np.abs(compared - reference).max()
        # A maximum of Python forgets NaN.
        found.difference = float(np.maximum(found.difference, difference))
        found.scale = max(found.scale, float(np.abs(reference).max()))
        found.equal = min(found.equal, float((got == labels).mean()))
        found.seconds = tuple(map(min, found.seconds, seconds))
    return found


def _logits(segmentor: Segmentor, pixels: np.ndarray) -> torch.Tensor:
    """(1, C, H, W) for (1, H, W, 3) pixels in BGR order, which OpenMMLab's loaders give."""
    image = torch.from_numpy(np.ascontiguousarray(pixels[0].transpose(2, 0, 1)))
    inputs = segmentor.model.data_preprocessor(dict(inputs=[image]), False)['inputs']
    if isinstance(inputs, (list, tuple)):
        inputs = torch.stack(list(inputs))
    size = inputs.shape[2:]
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
