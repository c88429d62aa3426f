"""The tokens of stripes, windows, regions and whole maps as rows, for `visattn_dense.ops.native`.

A map of (B, H, W) has B·H·W rows. The lists for a shape are kept from one call to the next.
"""
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from ..native import Groups
from ..padding import pad_to_multiple
from ..windows import partition_windows


def _kept(make: Callable[..., Any]) -> Callable[..., Any]:
    """The function, whose lists for 64 shapes are kept.

    They lie on the CPU, whatever torch's default device is. No mode of torch sees how they are
    made: a recording cannot read numbers, and each replay would write over its part of the lists.
    """
    @lru_cache(maxsize=64)
    def unseen(*args: Any) -> Any:
        with _disable_current_modes(), torch.device('cpu'):
            return make(*args)
    return unseen


@_kept
def window_groups(batch: int, height: int, width: int, window: tuple[int, int],
                  zero_keys: bool) -> tuple[Groups, tuple[int, int]]:
    """Every window attends to itself; the map is padded, centred, to whole windows.

    Args:
        batch, height, width: of the map.
        window: (h, w).
        zero_keys: whether the padding takes part, with keys and values of zero.

    Returns:
        The groups; and how many rows of padding are above the map, and columns left of the map.
    """
    rows = torch.arange(batch * height * width, dtype=torch.int32).view(batch, height, width)
    padded, (left, _, top, _) = pad_to_multiple(rows + 1, window, centred=True)
    windows = partition_windows(padded, window).flatten(1) - 1        # (B·S, N), padding is −1
    kept = windows >= 0
    counts = kept.sum(1)
    places = torch.arange(kept.shape[1], dtype=torch.int32).expand_as(kept)[kept]
    found = Groups(*_lists(windows[kept], counts) * 2, places=places)
    if zero_keys and not kept.all():
        found = found._replace(absent=(kept.shape[1] - counts).float())
    return found, (top, left)


@_kept
def region_groups(batch: int, height: int, width: int, n_win: int) -> Groups:
    """The n_win × n_win regions of a map, row by row, image by image; n_win divides both sides."""
    rows = torch.arange(batch * height * width, dtype=torch.int32).view(batch, height, width)
    regions = partition_windows(rows, (height // n_win, width // n_win)).flatten(1)
    counts = torch.full((regions.shape[0],), regions.shape[1])
    return Groups(*_lists(regions.flatten(), counts) * 2)


def _lists(rows: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return rows.contiguous(), starts.int()
