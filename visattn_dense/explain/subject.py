"""What is explained: a backbone by its name, and an image prepared for it."""
from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from visattn_dense.backbones import DenseBackbone
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import MissingFileError, UserError, did_you_mean
from visattn_dense.images import opened
from visattn_dense.predict.sources import as_rgb
from visattn_dense.registry import BACKBONES

UNTRAINED = 'none'
"""In place of a checkpoint: random weights."""
# Of ImageNet, for RGB from 0 to 255: all released backbones were trained with these.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Prepared:
    """An image as a model gets it.

    Attributes:
        image: (1, 3, H, W), normalised.
        picture: (H, W, 3) uint8 RGB, the same pixels for the eye.
        file_size: (height, width) of the file, before any resizing.
    """

    image: Tensor
    picture: np.ndarray
    file_size: tuple[int, int]

    @property
    def middle(self) -> tuple[float, float]:
        """(x, y), the middle of the image."""
        return (self.picture.shape[1] - 1) / 2, (self.picture.shape[0] - 1) / 2

    def point(self, x: float, y: float) -> tuple[float, float]:
        """A pixel of the file as a pixel of the image.

        Raises:
            UserError: the pixel is outside the file.
        """
        height, width = self.file_size
        if not (0 <= x < width and 0 <= y < height):
            raise UserError(f'the point {x:g},{y:g} (x, y) is outside the image of '
                            f'{width}x{height} pixels')
        new_height, new_width = self.picture.shape[:2]
        return (min(max((x + .5) * new_width / width - .5, 0), new_width - 1),
                min(max((y + .5) * new_height / height - .5, 0), new_height - 1))


def names() -> dict[str, tuple[str, str]]:
    """The backbones by name: 'cswin_tiny' -> ('CSWin', 'tiny')."""
    return {f'{family}_{arch}'.lower(): (family, arch) for family, cls in BACKBONES.items()
            for arch in getattr(cls, 'archs', ())}


def open_named(name: str, checkpoint: str | os.PathLike) -> DenseBackbone:
    """A backbone of the registry, with weights, in evaluation mode.

    Args:
        name: FAMILY_ARCH, in any case, as in docs/timm.md: 'cswin_tiny' or 'visattn_cswin_tiny'.
        checkpoint: see `load_pretrained`, 'visattn://NAME' too; `UNTRAINED` for random weights.

    Raises:
        UserError, FileNotFoundError: an unknown name, or a checkpoint that does not load or fit.
    """
    known = names()
    key = name.lower().removeprefix('visattn_')
    if key not in known:
        raise UserError(f'{name!r} is neither a config file nor a backbone. '
                        f'{did_you_mean(key, known)}')
    family, arch = known[key]
    torch.manual_seed(0)
    backbone = BACKBONES.build(dict(type=family, arch=arch))
    fill(backbone, checkpoint)
    return backbone.eval()


def fill(backbone: DenseBackbone, checkpoint: str | os.PathLike) -> None:
    """Load all of a backbone's weights; nothing for `UNTRAINED`."""
    if os.fspath(checkpoint) != UNTRAINED:
        load_pretrained(backbone, checkpoint, min_matched=1.)


def prepare(path: str | os.PathLike, *, short_side: int | None = None) -> Prepared:
    """An image file for a backbone that was trained as the released ones.

    Args:
        path: the file; `as_rgb` says what becomes of EXIF turns, grey, 16 bits and alpha.
        short_side: resize the image so that its shorter side has this many pixels.

    Raises:
        UserError: no such file, no image, or a damaged one.
    """
    if not os.path.exists(path):
        raise MissingFileError(f'no image {path}: there is no such file')
    try:
        with opened(path) as file:
            image = Image.fromarray(as_rgb(file))
    except OSError as error:
        raise UserError(f'{path} cannot be read as an image: {error}') from error
    file_size = image.height, image.width
    if short_side is not None:
        ratio = short_side / min(file_size)
        image = image.resize([max(1, round(side * ratio)) for side in image.size],
                             Image.Resampling.BICUBIC)
    return Prepared(normalised(np.array(image), _MEAN, _STD), np.array(image), file_size)


def normalised(picture: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(H, W, 3) RGB from 0 to 255, to (1, 3, H, W)."""
    pixels = torch.from_numpy(picture).permute(2, 0, 1).float()
    return ((pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None])[None]
