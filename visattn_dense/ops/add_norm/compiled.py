"""A residual sum and its LayerNorm by the kernel in C++: one pass over the tokens."""
import torch
from torch import Tensor

from .. import native
from ..choose import of_other_channels, of_other_shapes


def why_not(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float,
            scale: Tensor | None = None, dtype: torch.dtype | None = None,
            update_bias: Tensor | None = None) -> str | None:
    if scale is not None:
        return 'the branch has a factor'
    if update_bias is not None:
        return 'the branch has a bias'
    if dtype not in (None, x.dtype) or (update is not None and update.dtype != x.dtype):
        return 'the tensors have several dtypes'
    return (of_other_channels(x.shape[-1], weight, bias) or of_other_shapes(x, update)
            or native.why_not(x) or (None if update is None else native.why_not(update)))


def add_norm(x: Tensor, update: Tensor | None, weight: Tensor, bias: Tensor, *, eps: float,
             **_: object) -> tuple[Tensor, Tensor]:
    return native.add_norm(x, update, weight.detach(), bias.detach(), eps=eps)
