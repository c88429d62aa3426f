"""The activations that Triton kernels apply to their results, and their derivatives.

An activation has a name: 'none', 'relu', 'hardswish', 'gelu' or 'gelu_tanh'. The numbers are
float32.
"""
import triton
import triton.language as tl


@triton.jit
def activate(value, ACTIVATION: tl.constexpr):
    """The activation of that name."""
    if ACTIVATION == 'relu':
        # NaN stays NaN.
        value = tl.where(value < 0, 0., value)
    if ACTIVATION == 'hardswish':
        value *= tl.minimum(tl.maximum(value + 3, 0.), 6.) / 6
    if ACTIVATION == 'gelu':
        below, _ = normal(value)
        value *= below
    if ACTIVATION == 'gelu_tanh':
        value *= _gate(value)
    return value


@triton.jit
def activation_slope(value, ACTIVATION: tl.constexpr):
    """The derivative of the activation of that name."""
    slope = tl.full(value.shape, 1., tl.float32)
    if ACTIVATION == 'relu':
        slope = tl.where(value <= 0, 0., 1.)
    if ACTIVATION == 'hardswish':
        slope = tl.where(value >= 3, 1., tl.where(value <= -3, 0., value / 3 + .5))
    if ACTIVATION == 'gelu':
        below, density = normal(value)
        slope = below + value * density
    if ACTIVATION == 'gelu_tanh':
        gate = _gate(value)
        # The derivative of 2u, times x.
        inner = value * (1.5957691216057308 + 0.2140644488 * value * value)
        slope = gate * (1 + (1 - gate) * inner)
    return slope


@triton.jit
def normal(value):
    """The normal distribution Φ of the numbers, to within 8e-8, and its density φ.

    1 − Φ(|x|) is a polynomial of 1 / (1 + c |x|) times the exponential of φ (Abramowitz and Stegun,
    7.1.26).
    """
    bell = tl.exp(-0.5 * value * value)
    t = 1 / (1 + 0.2316418883 * tl.abs(value))
    tail = t * (0.127414796 + t * (-0.142248368 + t * (0.7107068705 + t * (
        -0.7265760135 + t * 0.5307027145)))) * bell
    return tl.where(value < 0, tail, 1 - tail), 0.3989422804014327 * bell


@triton.jit
def _gate(value):
    """GELU is x (1 + tanh u) / 2, which is x · sigmoid(2u): sigmoid(2u)."""
    u = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return 1 / (1 + tl.exp(-2 * u))
