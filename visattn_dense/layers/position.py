"""Position tables: the sinusoid table, and the resizing of a table to another map."""
import torch
import torch.nn.functional as F
from torch import Tensor

from visattn_dense.ops.precision import without_autocast

# Torch's bicubic kernel: Keys' cubic convolution with this parameter.
_A = -.75


def resize_position_grid(table: Tensor, from_size: tuple[int, int],
                         to_size: tuple[int, int]) -> Tensor:
    """Resize a table of positions in two dimensions, bicubically.

    The kernel is that of `torch.nn.functional.interpolate(mode='bicubic', align_corners=False)`.
    The kernel is separable, so each axis that changes takes one small matrix product. This is
    faster than the interpolation on many channels, and its gradient is deterministic on every
    device.

    Args:
        table: (1, N, C), position by position, row by row; N = h·w, without a class token.
        from_size: (h, w), the grid of the table.
        to_size: (H, W), the new grid.

    Returns:
        (1, H·W, C) in the table's dtype, computed in float32 or wider, also inside autocast;
        `table` itself if the sizes are equal.

    Raises:
        ValueError: the table is not of `from_size`.
    """
    (height, width), (new_height, new_width) = from_size, to_size
    if table.ndim != 3 or table.shape[0] != 1 or table.shape[1] != height * width:
        raise ValueError(f'a table for {height}x{width} positions has the shape '
                         f'(1, {height * width}, C), got {tuple(table.shape)}')
    if (height, width) == (new_height, new_width):
        return table
    with without_autocast(table):
        grid = table.to(torch.promote_types(table.dtype, torch.float32))
        grid = grid.unflatten(1, (height, width)).squeeze(0)             # (h, w, C)
        if height != new_height:
            rows = _bicubic_matrix(grid, height, new_height)
            grid = (rows @ grid.flatten(1)).unflatten(1, (width, -1))    # (H, w, C)
        if width != new_width:
            grid = _bicubic_matrix(grid, width, new_width) @ grid        # (H, W, C)
        return grid.flatten(0, 1)[None].to(table.dtype)


def _bicubic_matrix(like: Tensor, size: int, new_size: int) -> Tensor:
    """(new_size, size): the weight of each old position in each new position; rows sum to 1."""
    if not torch.compiler.is_compiling():
        unit = torch.eye(size, dtype=like.dtype, device=like.device)[None, None]
        return F.interpolate(unit, (new_size, size), mode='bicubic')[0, 0]
    # Compilers break an interpolation up into hundreds of operators for each table: so the formula.
    new, old = (torch.arange(n, dtype=like.dtype, device=like.device) for n in (new_size, size))
    centre = (new[:, None] + .5) * (size / new_size) - .5
    taps = centre.floor() - 1 + torch.arange(4, dtype=like.dtype, device=like.device)
    distance = (centre - taps).abs()
    near = ((_A + 2) * distance - (_A + 3)) * distance**2 + 1
    far = ((distance - 5) * distance + 8) * distance * _A - 4 * _A
    weights = torch.where(distance <= 1, near, far)
    # A tap beyond the border counts for the position at the border.
    at = taps.clamp(0, size - 1)[..., None] == old
    return (weights[..., None] * at).sum(1)


def sinusoid_table(positions: int, dim: int) -> Tensor:
    """(1, positions, dim): of p / 10000^(2i/dim), sin in channel 2i and cos in channel 2i + 1."""
    rate = 10000 ** (-2 * (torch.arange(dim) // 2).double() / dim)
    angles = torch.arange(positions).double()[:, None] * rate
    even = torch.arange(dim) % 2 == 0
    return torch.where(even, angles.sin(), angles.cos()).float()[None]
