"""Multi-scale deformable attention (Zhu et al. 2020), on mmcv's own formula in plain torch.

mmcv uses that formula on the CPU and its compiled operator on the GPU. Here the operator is the
formula, with autograd's backward: the same numbers, with more memory than the kernel. One rule of
the compiled operator is added: a sample whose row or column is -1 or less has no gradient for its
location. Autograd alone gives a gradient to a sample exactly on -1.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ms_deform_attn_forward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, *, im2col_step: int,
) -> Tensor:
    """Attention output (B, num_queries, num_heads · head_dim).

    Args:
        value: (B, num_keys, num_heads, head_dim), the levels one after the other.
        spatial_shapes: (num_levels, 2) as (h, w).
        level_start_index, im2col_step: of use to the compiled operator only.
        sampling_locations: (B, num_queries, num_heads, num_levels, num_points, 2) as (x, y) in 0–1.
        attention_weights: (B, num_queries, num_heads, num_levels, num_points).
    """
    return _formula(value, spatial_shapes, sampling_locations, attention_weights)


def ms_deform_attn_backward(
    value: Tensor, spatial_shapes: Tensor, level_start_index: Tensor, sampling_locations: Tensor,
    attention_weights: Tensor, grad_output: Tensor, grad_value: Tensor, grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor, *, im2col_step: int,
) -> None:
    """Fill the three gradients; the arguments are those of the forward."""
    inputs = [
        tensor.detach().requires_grad_()
        for tensor in (value, sampling_locations, attention_weights)
    ]
    with torch.enable_grad():
        output = _formula(inputs[0], spatial_shapes, inputs[1], inputs[2])
    grads = torch.autograd.grad(output, inputs, grad_output)
    # (num_levels, 1, 2) as (w, h), against locations (B, Q, heads, num_levels, points, 2) as (x, y)
    size = spatial_shapes.flip(1)[:, None]
    inside = (sampling_locations * size - 0.5 > -1).all(-1, keepdim=True)
    grad_value.copy_(grads[0])
    grad_sampling_loc.copy_(grads[1].where(inside, 0))
    grad_attn_weight.copy_(grads[2])


def _formula(value: Tensor, shapes: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    # Not at the top: mmcv.ops is what imports this module.
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), locations, weights)
