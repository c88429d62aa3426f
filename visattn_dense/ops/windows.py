"""Cut an NHWC map into windows, and merge windows. A stripe is a window as long as the map."""
from collections.abc import Callable

import torch
from torch import Tensor

from .padding import pad_to_multiple

Window = tuple[int, int]
"""(h, w) of a window."""


def partition_windows(x: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Cut a map into windows, row by row.

    Args:
        x: (B, H, W, ...) with H and W multiples of the window.
        window_size: (h, w) of a window.

    Returns:
        (B · H/h · W/w, h, w, ...): a view if the window is as wide as the map, else a copy.

    Raises:
        ValueError: the window does not divide the map.
    """
    (height, width), (h, w) = x.shape[1:3], window_size
    if height % h or width % w:
        raise ValueError(f'windows of {h}x{w} do not divide a map of {height}x{width}; '
                         'pad it first (visattn_dense.layers.pad_to_multiple)')
    x = x.unflatten(2, (width // w, w)).unflatten(1, (height // h, h))
    # (B, H/h, h, W/w, w, ...) to (B, H/h, W/w, h, w, ...)
    return x.transpose(2, 3).reshape(-1, h, w, *x.shape[5:])


def merge_windows(windows: Tensor, map_size: tuple[int, int]) -> Tensor:
    """Undo `partition_windows`.

    Args:
        windows: (B · H/h · W/w, h, w, ...).
        map_size: (H, W) of the map that was cut.

    Returns:
        (B, H, W, ...).
    """
    (height, width), (h, w) = map_size, windows.shape[1:3]
    x = windows.unflatten(0, (-1, height // h, width // w)).transpose(2, 3)
    return x.reshape(-1, height, width, *windows.shape[3:])


def window_corner(map_size: tuple[int, int], window_size: tuple[int, int]) -> tuple[int, int]:
    """Rows above the map and columns left of the map, of the centred padding to whole windows."""
    (height, width), (h, w) = map_size, window_size
    return -height % h // 2, -width % w // 2


def regions_of(x: Tensor, n_win: int) -> Tensor:
    """A map as n_win × n_win regions, a view: (B, H, W, ...) to (B, n_win, n_win, h, w, ...)."""
    return x.unflatten(2, (n_win, -1)).unflatten(1, (n_win, -1)).transpose(2, 3)


def pool_regions(k: Tensor, v: Tensor, n_win: int, pool: Callable[[Tensor], Tensor]
                 ) -> tuple[Tensor, Tensor]:
    """Reduce the keys and values of each region: (B, H, W, ·) to (B, n_win, n_win, h', w', ·)."""
    kv = torch.cat([k, v], -1)
    kv = regions_of(kv, n_win).flatten(0, 2).permute(0, 3, 1, 2)
    kv = pool(kv).permute(0, 2, 3, 1).unflatten(0, (k.shape[0], n_win, n_win))
    return kv.split([k.shape[-1], v.shape[-1]], -1)


def tokens_on_map(x: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Which tokens of the windows are on the map. The other tokens are padding around the map.

    Args:
        x: (B, H, W, ...), the map before padding. The padding to whole windows is centred.
        window_size: (h, w) of a window.

    Returns:
        (B·S, N) bool, S windows of N = h·w tokens; True for a token on the map.
    """
    inside = x.new_ones(x.shape[:3])
    windows = partition_windows(pad_to_multiple(inside, window_size, centred=True)[0], window_size)
    return windows.flatten(1).bool()
