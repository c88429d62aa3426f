"""The equation of depthwise convolution."""
import torch
import torch.nn.functional as F
from torch import Tensor

from ..windows import window_corner
from .torch_form import ACTIVATIONS


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, plus_input: bool = False,
              onto: Tensor | None = None, activation: str = 'none', stride: int = 1,
              window: tuple[int, int] | None = None) -> Tensor:
    """conv(x)[y, x] = Σ_ij weight[i, j] · x[s y + i − k/2, s x + j − k/2] + bias, channelwise.

    Args:
        x: (B, H, W, C).
        weight: (C, 1, k, k), k odd.
        bias: (C,) or None.
        plus_input: add x to the result.
        onto: like the result, also added to it, or None. The operator may overwrite `onto` with the
            result.
        activation: 'none', 'relu' or 'hardswish', applied to the sum.
        stride: s; 1 with `plus_input` or `window`.
        window: (h, w). The convolution reads no position of another window. The windows are centred
            on the map and may reach beyond the map. None: no windows.

    Returns:
        (B, ⌈H/s⌉, ⌈W/s⌉, C).
    """
    (height, width), side = x.shape[1:3], weight.shape[-1]
    padded = F.pad(x, (0, 0) + (side // 2,) * 4)
    rows, columns = (_places(size, shift, side, x) for size, shift in (
        (height, window and (window[0], window_corner((height, width), window)[0])),
        (width, window and (window[1], window_corner((height, width), window)[1]))))
    out = sum(weight[:, 0, i, j] * padded[:, i:i + height:stride, j:j + width:stride]
              * (rows[i][::stride, None] & columns[j][::stride])[..., None]
              for i in range(side) for j in range(side))
    for term in (bias, x if plus_input else None, onto):
        out = out if term is None else out + term
    return ACTIVATIONS[activation](out)


def _places(size: int, window: tuple[int, int] | None, side: int, like: Tensor) -> list[Tensor]:
    """Along one axis, for each tap: which places the tap may read for.

    `window` is the length of a window, and what the first window has before the map.
    """
    place = torch.arange(-(side // 2), size + side // 2, device=like.device)
    if window is None:
        place = torch.zeros_like(place)
    else:
        place = (place + window[1]).div(window[0], rounding_mode='floor')
    own = place[side // 2:side // 2 + size]
    return [place[i:i + size] == own for i in range(side)]
