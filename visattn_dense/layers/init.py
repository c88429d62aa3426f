"""The initialisation that the families share."""
from torch import nn


def init_vit_weights(module: nn.Module) -> None:
    """Truncated normal (σ = 0.02) for linear layers, zero biases, unit norms; for `Module.apply`.

    The official CSWin, FLatten, BiFormer and T2T-ViT code initialises in the same way. Convolutions
    keep torch's default.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
