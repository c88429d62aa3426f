"""What a fast module and its naive form are compared by."""
import torch
from torch import Tensor, nn


def outputs_and_gradients(module: nn.Module, x: Tensor, *,
                          allow_unused: bool = False) -> list[Tensor]:
    """Output, and the gradients of input and parameters, of a fixed scalar of the output.

    With `allow_unused`, what takes no part in the output has a gradient of zeros.
    """
    x = x.clone().requires_grad_()
    out = module(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), [x, *module.parameters()],
                                allow_unused=allow_unused, materialize_grads=allow_unused)
    return [out, *grads]
