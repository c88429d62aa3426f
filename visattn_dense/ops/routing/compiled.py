"""Routing by the kernels in C++."""
from torch import Tensor

from .. import native
from ..choose import of_other_shapes


def why_not(x: Tensor, *_: object, **__: object) -> str | None:
    return native.why_not(x)


def why_not_top(q: Tensor, k: Tensor, **_: object) -> str | None:
    return of_other_shapes(q, k) or native.why_not(q) or native.why_not(k)


def region_means(x: Tensor, n_win: int) -> Tensor:
    return native.region_means(x, n_win)


def top_regions(q: Tensor, k: Tensor, *, count: int, scale: float) -> tuple[Tensor, Tensor]:
    return native.top_regions(q, k, count=min(count, k.shape[1]), scale=scale)
