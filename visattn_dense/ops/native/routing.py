"""The compiled kernels of routing: means of regions, and the regions that a region attends to."""
import torch
from torch import Tensor

from .calls import DTYPES, operator, pointer, rows_of, run


def region_means(x: Tensor, n_win: int) -> Tensor:
    """The mean of each region of a map; see `visattn_dense.ops.routing`.

    Args:
        x: (B, H, W, C), viewed as rows; `n_win` divides H and W.
        n_win: regions along each side.

    Returns:
        (B, n_win², C).

    Raises:
        RuntimeError: `x` cannot be viewed as rows.
    """
    return _region_means(x, n_win)


@operator('visattn::region_means', mutates_args=())
def _region_means(x: Tensor, n_win: int) -> Tensor:
    rows, = rows_of(x)
    out = _fake_region_means(x, n_win)
    run(
        'region_means', pointer(rows), rows.stride(0), *x.shape, n_win, pointer(out),
        DTYPES.index(x.dtype), torch.get_num_threads())
    return out


@_region_means.register_fake
def _fake_region_means(x, n_win):
    return x.new_empty(x.shape[0], n_win**2, x.shape[-1])


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """The largest of the logits q kᵀ · scale, and their regions; see `visattn_dense.ops.routing`.

    Of equal logits, the first regions are taken. NaN is larger than all numbers.

    Args:
        q, k: (B, R, Q), viewed as rows.
        count: K, at most R.
        scale: factor of the logits.

    Returns:
        logits: (B, R, K), the largest first.
        index: (B, R, K) int64.

    Raises:
        RuntimeError: q or k cannot be viewed as rows.
    """
    return _top_regions(q, k, count, scale)


@operator('visattn::top_regions', mutates_args=())
def _top_regions(q: Tensor, k: Tensor, count: int, scale: float) -> tuple[Tensor, Tensor]:
    tensors = rows_of(q, k)
    logits, index = _fake_top_regions(q, k, count, scale)
    run(
        'route', *map(pointer, tensors), *(t.stride(0) for t in tensors), *q.shape, count, scale,
        pointer(logits), pointer(index), DTYPES.index(q.dtype), torch.get_num_threads())
    return logits, index


@_top_regions.register_fake
def _fake_top_regions(q, k, count, scale):
    shape = *q.shape[:2], count
    return q.new_empty(shape), q.new_empty(shape, dtype=torch.int64)
