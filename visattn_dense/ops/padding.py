"""Zero-padding of an NHWC map to multiples of a window, and the crop that undoes it."""
import torch
import torch.nn.functional as F
from torch import Tensor

Pads = tuple[int, int, int, int]
"""(left, right, top, bottom), in positions."""


def pad_to_multiple(x: Tensor, multiple: tuple[int, int], *,
                    centred: bool = False) -> tuple[Tensor, Pads]:
    """Zero-pad the H and W of `x` up to multiples.

    Args:
        x: (B, H, W, ...), any number of trailing dimensions.
        multiple: (mh, mw), what H and W shall be divisible by.
        centred: half of the pad before (rounded down) and half after, as CSWin has it; else all of
            it at the bottom and right, as BiFormer has it.

    Returns:
        The padded map (`x` itself where nothing is to do) and the pads for `crop`.
    """
    total_h, total_w = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
    top, left = (total_h // 2, total_w // 2) if centred else (0, 0)
    pads = (left, total_w - left, top, total_h - top)
    if is_padded(pads):
        x = F.pad(x, (0, 0) * (x.ndim - 3) + pads)
    return x, pads


def crop(x: Tensor, pads: Pads) -> Tensor:
    """Take the pads off again: (B, H + top + bottom, W + left + right, ...) to (B, H, W, ...)."""
    left, right, top, bottom = pads
    if not is_padded(pads):
        return x
    return x[:, top:x.shape[1] - bottom, left:x.shape[2] - right]


def is_padded(pads: Pads) -> bool:
    """Whether there is padding. While a graph is compiled, always: with a branch on the size there
    would be a graph for each outcome.
    """
    return torch.compiler.is_compiling() or any(pads)
