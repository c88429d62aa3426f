"""The Triton kernel of a BatchNorm by running statistics, or a bias, and an activation.

    out = act((x − μ) · w / √(σ² + eps) + b)

x is NHWC and contiguous: P positions of C channels. A program computes BLOCK positions and BLOCK_C
channels. All arithmetic is float32. Without μ there is no norm; b may be None.
"""
import triton
import triton.language as tl


@triton.jit(do_not_specialize=['P'])
def norm_act_kernel(x, mean, variance, weight, bias, out, eps, P, C: tl.constexpr,
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
    if ACTIVATION == 'relu':
        value = tl.maximum(value, 0.)
    if ACTIVATION == 'hardswish':
        value *= tl.minimum(tl.maximum(value + 3, 0.), 6.) / 6
    if ACTIVATION == 'gelu_tanh':
        # x (1 + tanh u) / 2 is x · sigmoid(2u).
        u = 0.7978845608028654 * (value + 0.044715 * value * value * value)
        value /= 1 + tl.exp(-2 * u)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)
