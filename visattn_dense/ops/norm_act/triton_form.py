"""A BatchNorm by running statistics, or a bias, and an activation, by one Triton kernel.

There is no gradient. All arithmetic is float32.
"""
import torch
from torch import Tensor

from .. import launching
from ..launching import Launch, once_for_a_size, power_of_two
from ..registered import registered
from .torch_form import ACTIVATIONS, Norm


def why_not(x: Tensor, bias: Tensor | None, norm: Norm | None = None, *, activation: str = 'none',
            onto: Tensor | None = None) -> str | None:
    """Why the kernel cannot take these tensors, or None."""
    tensors = x, bias, onto, *(() if norm is None else norm[:3])
    reason = launching.why_not(*tensors)
    if reason is None and torch.is_grad_enabled() and any(
            t is not None and t.requires_grad for t in tensors):
        reason = 'a gradient is needed'
    if reason is None and not (x.is_contiguous() and (onto is None or onto.is_contiguous())):
        reason = 'a map is not contiguous (channels_last)'
    if reason is None and activation not in ACTIVATIONS:
        reason = f'the activation {activation!r} has no kernel'
    return reason


def norm_act(x: Tensor, bias: Tensor | None, norm: Norm | None = None, *,
             activation: str = 'none', onto: Tensor | None = None) -> Tensor:
    mean, variance, weight, eps = norm or (None, None, None, 0.)
    return _forward(x, mean, variance, weight, bias, onto, eps, activation)


@registered(
    'visattn::norm_act_triton',
    '(Tensor x, Tensor? mean, Tensor? variance, Tensor? weight, Tensor? bias, Tensor? onto, '
    'float eps, str activation) -> Tensor')
def _forward(x, mean, variance, weight, bias, onto, eps, activation):
    out = _empty(x, mean, variance, weight, bias, onto, eps, activation)
    if x.numel() > 0:
        _launch(x.shape, eps, activation)(x, mean, variance, weight, bias, onto, out)
    return out


@_forward.register_fake
def _empty(x, mean, variance, weight, bias, onto, eps, activation):
    return torch.empty_like(x, dtype=x.dtype if onto is None else
                            torch.promote_types(x.dtype, onto.dtype))


@once_for_a_size
def _launch(shape: torch.Size, eps: float, activation: str) -> Launch:
    from .triton_kernels import norm_act_kernel
    positions, channels = shape[:-1].numel(), shape[-1]
    block_c = min(128, power_of_two(channels))
    block = 4096 // block_c
    return Launch(norm_act_kernel, (-(-positions // block), -(-channels // block_c)), float(eps),
                  positions, C=channels, ACTIVATION=activation, BLOCK=block, BLOCK_C=block_c,
                  num_warps=4, enable_fp_fusion=True)
