"""The equation of every mechanism, slow and obvious: what the fast modules are held to.

Each naive class is a subclass of the module it explains, with the same parameters and another
forward, so outputs and gradients compare directly, and `as_naive` turns a whole network.
"""
from torch import nn

from ..bra import BiLevelRoutingAttention
from ..cswin import StripeAttention
from ..focused import FocusedStripeAttention
from ..litemla import LiteMLA
from ..self_attention import SelfAttention
from ..tokens import TokenPerformer, WideSelfAttention
from .bra import NaiveBiLevelRoutingAttention
from .cswin import NaiveStripeAttention
from .focused import NaiveFocusedStripeAttention
from .litemla import NaiveLiteMLA
from .tokens import NaiveSelfAttention, NaiveTokenPerformer, NaiveWideSelfAttention

NAIVE: dict[type[nn.Module], type[nn.Module]] = {
    BiLevelRoutingAttention: NaiveBiLevelRoutingAttention,
    StripeAttention: NaiveStripeAttention,
    FocusedStripeAttention: NaiveFocusedStripeAttention,
    LiteMLA: NaiveLiteMLA,
    SelfAttention: NaiveSelfAttention,
    TokenPerformer: NaiveTokenPerformer,
    WideSelfAttention: NaiveWideSelfAttention,
}


def as_naive(module: nn.Module) -> nn.Module:
    """Switch every attention inside `module` to its naive form, in place, and return it.

    Raises:
        ValueError: there is nothing to switch.
    """
    found = [m for m in module.modules() if type(m) in NAIVE]
    if not found:
        raise ValueError(f'{type(module).__name__} holds no attention that has a naive form; '
                         f'those are {", ".join(cls.__name__ for cls in NAIVE)}')
    for attention in found:
        attention.__class__ = NAIVE[type(attention)]
    return module


__all__ = [
    'NAIVE', 'NaiveBiLevelRoutingAttention', 'NaiveFocusedStripeAttention', 'NaiveLiteMLA',
    'NaiveSelfAttention', 'NaiveStripeAttention', 'NaiveTokenPerformer', 'NaiveWideSelfAttention',
    'as_naive',
]
