"""Routing by the kernels in C++."""
from torch import Tensor

from .. import native


def why_not(x: Tensor, *_: object, **__: object) -> str | None:
    return native.why_not(x)


def region_means(x: Tensor, n_win: int) -> Tensor:
    return native.region_means(x, n_win)


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    return native.top_regions(q, k, count=min(count, k.shape[1]), scale=scale)
