"""A picture as an exported model takes it: resized, padded, normalised as the file's card says."""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from visattn_dense.errors import UserError

from .card import Card
from .resizing import resize
from .sources import Picture

Compute = Callable[..., Sequence[np.ndarray]]
"""From the arrays that a file takes to the arrays that a file gives."""


@dataclass
class Ready:
    """A picture as the exported model takes it.

    Attributes:
        picture: where it comes from.
        image: (H, W, 3) uint8 RGB.
        inputs: (1, 3, h, w) float32, normalised; or (1, h, w, 3) uint8 if the file prepares.
            In the order of colours of the card.
        content: (h, w) of the part that is no padding, at the top left.
    """

    picture: Picture
    image: np.ndarray
    inputs: np.ndarray
    content: tuple[int, int]

    @property
    def key(self) -> tuple[int, ...]:
        return self.inputs.shape


@dataclass
class ExportedModel:
    """What the models of exported files share; a `Runtime` of `visattn_dense.predict.stream`.

    Attributes:
        card: what the file says about itself.
        compute: the file.
        origin: the file's name, for messages.
    """

    card: Card
    compute: Compute
    origin: str

    @property
    def classes(self) -> Sequence[str]:
        return self.card.classes

    @property
    def palette(self) -> Sequence[Sequence[int]]:
        return self.card.palette

    def prepare(self, picture: Picture) -> Ready:
        """Load, resize, pad and normalise a picture.

        Raises:
            UserError: the picture is no image, is damaged, or is too small for the file.
        """
        ready = load(picture, self.card)
        sides = ready.inputs.shape[1:3] if self.card.pre_and_post else ready.inputs.shape[2:]
        least = self.card.smallest_side
        if least is not None and min(sides) < least:
            raise UserError(f'{self.origin} computes inputs from {least}x{least} pixels on, and '
                            f'{picture.title} leads to {sides[0]}x{sides[1]}: enlarge the picture, '
                            'or export the model with --size HxW')
        return ready


def load(picture: Picture, card: Card) -> Ready:
    """Load, resize, pad and normalise a picture.

    Raises:
        UserError: the picture is no image, or is damaged.
    """
    image = np.ascontiguousarray(picture.rgb())
    return Ready(picture, image, *prepare(image, card))


def prepare(image: np.ndarray, card: Card) -> tuple[np.ndarray, tuple[int, int]]:
    """The model's input for (H, W, 3) uint8 RGB, and the (h, w) of its part without padding."""
    if card.channels == 'bgr':
        image = image[..., ::-1]
    for step in card.steps:
        if step['do'] != 'pad':
            image = resize(image, _target(step, image.shape[:2]),
                           method=step.get('method', 'bilinear'))
    content = height, width = image.shape[:2]
    size = content
    for step in card.steps:
        if step['do'] == 'pad':
            size = tuple(map(max, size, step.get('size') or [
                -(-side // step['of']) * step['of'] for side in size]))
    mean, std = (np.asarray(values, np.float32) for values in (card.mean, card.std))
    if card.pre_and_post:
        pixels = np.empty((1, *size, 3), np.uint8)
        pixels[:] = np.round(mean)
        pixels[0, :height, :width] = image
    else:
        pixels = np.zeros((1, 3, *size), np.float32)
        pixels[0, :, :height, :width] = ((image - mean) / std).transpose(2, 0, 1)
    return pixels, content


def _target(step: Any, size: tuple[int, int]) -> tuple[int, int]:
    """(h, w) to which a step resizes an image of (H, W)."""
    if step['do'] == 'multiple':
        return tuple(math.ceil(side / step['of']) * step['of'] for side in size)
    if step['do'] == 'fit':
        factor = min(most / side for most, side in zip(step['size'], size, strict=True))
        return tuple(min(most, max(1, int(side * factor + 0.5)))
                     for most, side in zip(step['size'], size, strict=True))
    scale = step['scale']
    if not step['keep_ratio']:
        return scale[1], scale[0]
    factor = min(max(scale) / max(size), min(scale) / min(size))
    return tuple(max(1, int(side * factor + 0.5)) for side in size)
