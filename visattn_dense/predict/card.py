"""What an exported model says about itself: the card, a table of strings in the file.

ONNX files have the card in `metadata_props`. Each value is JSON, so a program in any language can
read it:

format          version of this table, a number
task            "segmentation"; "detection": boxes; "instances": boxes and masks
classes         names, by index
palette         RGB triple of each class
channels        "rgb" or "bgr": the order of colours in the model's input, in mean and in std
mean, std       three numbers each: the model computes on (pixel - mean) / std
steps           what happens to the picture before, in order; see `Step`
align_corners   of the bilinear resizing of logits
threshold       one channel of logits only: the sigmoid above which a pixel is of class 1
thresholds      of detectors, else null: "score", below which the file gives no object; "nms", the
                overlap (IoU) above which the file drops one of two boxes of a class; of instances
                also "mask", the least probability of a pixel of the object
max_per_image   of detectors: the file gives so many objects at most; else null
smallest_side   of a file for any size: the model's input has at least so many pixels on each side,
                after all steps; else null
pre_and_post    true: the file takes pixels, and segmentors give labels
int8            true: the file computes in 8 bits
license         of the weights, as the person who exported them wrote it
versions        of what made the file
"""
from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from visattn_dense.errors import UserError

FORMAT = 1
TASKS = ('segmentation', 'detection', 'instances')

Step = Mapping[str, Any]
"""One step on the way from a picture to the model's input. The key `do` says which:

resize    to the largest size within `scale`, two numbers: the longer side of the picture is at most
          the larger number, the shorter side at most the smaller. With `keep_ratio` false: to
          `scale` = [width, height]. `method` is "bilinear" or "bicubic".
fit       to the largest size within `size` = [height, width], same ratio; bilinear.
multiple  resize each side up to the next multiple of `of`; `method` as above.
pad       at the bottom and at the right, after all other steps: to `size` = [height, width], or to
          multiples of `of`. The padding is 0 after (pixel - mean) / std; in pixels, of a file with
          pre_and_post, it has the colour `mean`, rounded to whole numbers.
"""


@dataclass(frozen=True)
class Card:
    """See the top of this file."""

    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    mean: Sequence[float]
    std: Sequence[float]
    steps: Sequence[Step]
    channels: str = 'rgb'
    align_corners: bool = False
    threshold: float = 0.3
    thresholds: Mapping[str, float] | None = None
    max_per_image: int | None = None
    smallest_side: int | None = None
    pre_and_post: bool = False
    int8: bool = False
    license: str = 'not stated'
    versions: Mapping[str, str] | None = None
    task: str = 'segmentation'
    format: int = FORMAT

    def strings(self) -> dict[str, str]:
        """The table for the file."""
        return {name: json.dumps(value) for name, value in asdict(self).items()}

    @classmethod
    def read(cls, table: Mapping[str, str], origin: str) -> Card:
        """The card in a table of strings.

        Args:
            table: what `strings` gave; other entries are ignored.
            origin: the file, for the message.

        Raises:
            UserError: the table is no card, or of another format.
        """
        try:
            # Files of earlier versions have fewer entries.
            card = cls(**{field.name: json.loads(table[field.name]) for field in fields(cls)
                          if field.name in table})
            _check(card)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f'{origin} is no model that tools/export.py wrote: its table of '
                            f'metadata is not complete ({type(error).__name__}: {error})'
                            ) from error
        if card.format != FORMAT or card.task not in TASKS:
            raise UserError(f'{origin} has format {card.format} and task {card.task!r}; this '
                            f'version reads format {FORMAT} and the tasks {", ".join(TASKS)}')
        return card


def _check(card: Card) -> None:
    if len(card.palette) != len(card.classes) or len(card.mean) != 3 or len(card.std) != 3:
        raise ValueError('classes, palette, mean and std do not belong together')
    if card.channels not in ('rgb', 'bgr'):
        raise ValueError(f'unknown order of colours {card.channels!r}')
    needed = {'detection': {'score', 'nms'}, 'instances': {'score', 'nms', 'mask'}}
    if not needed.get(card.task, set()) <= set(card.thresholds or ()):
        raise ValueError('the thresholds of the detector are missing')
    for step in card.steps:
        if step['do'] not in ('resize', 'fit', 'multiple', 'pad'):
            raise ValueError(f'unknown step {step["do"]!r}')
