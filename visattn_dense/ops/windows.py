"""Cutting an NHWC map in windows and merging them. A stripe is a window as long as the map."""
from torch import Tensor


def partition_windows(x: Tensor, window_size: tuple[int, int]) -> Tensor:
    """Cut a map in windows, row by row.

    Args:
        x: (B, H, W, ...) with H and W multiples of the window.
        window_size: (h, w) of a window.

    Returns:
        (B · H/h · W/w, h, w, ...): a view where the window is as wide as the map, else a copy.

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
