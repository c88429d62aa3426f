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
        multiple: (mh, mw). The padded H is a multiple of mh, the padded W a multiple of mw.
        centred: pad on both sides, half of the pad (rounded down) at the top and left, as CSWin
            does. Else pad only at the bottom and right, as BiFormer does.

    Returns:
        The padded map, or `x` itself if no padding is necessary; and the pads for `crop`.
    """
    total_h, total_w = -x.shape[1] % multiple[0], -x.shape[2] % multiple[1]
    top, left = (total_h // 2, total_w // 2) if centred else (0, 0)
    pads = (left, total_w - left, top, total_h - top)
    if is_padded(pads):
        x = F.pad(x, (0, 0) * (x.ndim - 3) + pads)
    return x, pads


def crop(x: Tensor, pads: Pads) -> Tensor:
    """Remove the pads: (B, H + top + bottom, W + left + right, ...) to (B, H, W, ...)."""
    left, right, top, bottom = pads
    if not is_padded(pads):
        return x
    # Slicing from a symbolic `top` would give torch 2.6 one graph for 0 and one for other pads.
    height, width = x.shape[1] - top - bottom, x.shape[2] - left - right
    return x.narrow(1, top, height).narrow(2, left, width)


def is_padded(pads: Pads) -> bool:
    """Whether there is padding. Returns True while torch.compile traces, for any pads.

    A branch that depends on the size would give one graph for each outcome. With True, one graph
    serves all sizes: padding by 0 changes nothing.
    """
    return torch.compiler.is_compiling() or any(pads)
