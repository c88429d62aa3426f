"""Stochastic depth (arXiv 1603.09382): drop a whole residual branch, sample by sample."""
import itertools

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """y_b = x_b · m_b / (1 − p) with m_b ~ Bernoulli(1 − p) while training; the identity otherwise.

    Args:
        drop_prob: p, the probability that a sample's branch is dropped, in [0, 1).
    """

    def __init__(self, drop_prob: float = 0.) -> None:
        super().__init__()
        if not 0. <= drop_prob < 1.:
            raise ValueError(f'drop_prob is a probability in [0, 1), got {drop_prob}')
        self.drop_prob = drop_prob

    def factor(self, x: Tensor) -> Tensor | None:
        """m_b / (1 − p), newly drawn: (B, 1, ..., 1) in the dtype of x; None for the identity."""
        if not self.training or self.drop_prob == 0.:
            return None
        keep = 1. - self.drop_prob
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        if torch.compiler.is_compiling():
            # bernoulli_(keep) would fix `keep` in a compiled graph, and `keep` is another in every
            # block.
            return ((torch.rand(shape, device=x.device) < keep) / keep).to(x.dtype)
        return x.new_empty(shape).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) to the same shape."""
        factor = self.factor(x)
        return x if factor is None else x * factor

    def extra_repr(self) -> str:
        return f'{self.drop_prob:.3g}'


def drop_path_rates(drop_path_rate: float, depths: tuple[int, ...]) -> list[list[float]]:
    """Rates that grow linearly from 0 at the first block to `drop_path_rate` at the last.

    Args:
        drop_path_rate: the last block's rate.
        depths: number of blocks of each stage.

    Returns:
        One list for each stage, one rate for each of its blocks.
    """
    step = drop_path_rate / max(1, sum(depths) - 1)
    index = itertools.count()
    return [[next(index) * step for _ in range(depth)] for depth in depths]
