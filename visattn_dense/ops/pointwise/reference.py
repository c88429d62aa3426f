"""The equation of a 1×1 convolution in groups."""
from torch import Tensor, einsum


def grouped_pointwise(x: Tensor, weight: Tensor, *, groups: int) -> Tensor:
    """out_g = W_g x_g at each position, for each group g of channels.

    Args:
        x: (B, H, W, G · I).
        weight: (G · O, I, 1, 1), W_g below one another.
        groups: G.

    Returns:
        (B, H, W, G · O).
    """
    x, weight = x.unflatten(-1, (groups, -1)), weight.flatten(1).unflatten(0, (groups, -1))
    return einsum('b h w g i, g o i -> b h w g o', x, weight).flatten(-2)
