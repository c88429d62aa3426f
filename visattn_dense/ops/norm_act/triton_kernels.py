"""The Triton kernel of a BatchNorm by running statistics, or a bias, and an activation.

    out = act((x − μ) · w / √(σ² + eps) + b) + onto

x and `onto` are NHWC and contiguous: P positions of C channels. A program computes BLOCK positions
and BLOCK_C channels. All arithmetic is float32. Without μ there is no norm; b and `onto` may be
None.
"""
import triton
import triton.language as tl

from ..triton_activations import activate


@triton.jit(do_not_specialize=['P'])
def norm_act_kernel(x, mean, variance, weight, bias, onto, out, eps, P, C: tl.constexpr,
                    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr, BLOCK_C: tl.constexpr):
    position = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    channel = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    real = channel < C
    inside = (position < P)[:, None] & real[None, :]
    place = position[:, None] * C + channel[None, :]
    value = tl.load(x + place, mask=inside, other=0.).to(tl.float32)
    if mean is not None:
        centre = tl.load(mean + channel, mask=real, other=0.).to(tl.float32)
        spread = tl.load(variance + channel, mask=real, other=1.).to(tl.float32)
        factor = tl.load(weight + channel, mask=real, other=0.).to(tl.float32)
        value = (value - centre[None, :]) * (factor / tl.sqrt(spread + eps))[None, :]
    if bias is not None:
        value += tl.load(bias + channel, mask=real, other=0.).to(tl.float32)[None, :]
    value = activate(value, ACTIVATION)
    if onto is not None:
        value += tl.load(onto + place, mask=inside, other=0.).to(tl.float32)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
