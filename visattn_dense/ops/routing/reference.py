"""The equations of routing (BiFormer, arXiv 2303.08810, §3.2)."""
from torch import Tensor, einsum


def region_means(x: Tensor, n_win: int) -> Tensor:
    """The mean of each region of a map.

    Args:
        x: (B, H, W, C); n_win divides H and W.
        n_win: regions along each side.

    Returns:
        (B, R, C) with R = n_win², row by row.
    """
    regions = x.unflatten(2, (n_win, -1)).unflatten(1, (n_win, -1))     # (B, n_win, h, n_win, w, C)
    return regions.mean((2, 4)).flatten(1, 2)


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    """The K largest of the logits q_r · k_s · scale of each region r, K = min(count, R).

    Args:
        q, k: (B, R, Q), descriptors of R regions.
        count: how many regions to choose; more than R means all regions.
        scale: factor of the logits.

    Returns:
        logits: (B, R, K), the largest first.
        index: (B, R, K) int64, their regions s.
    """
    logits, index = (einsum('b r c, b s c -> b r s', q, k) * scale).sort(-1, descending=True)
    return logits[..., :count], index[..., :count]
