"""The attentions, each usable alone in any network: (B, H, W, C) in and out, any H and W.

These modules need only torch, `visattn_dense.ops` and `visattn_dense.layers`.
`visattn_dense.attention.naive` has the equation of each attention, slow and obvious, with the same
parameters.
"""
from visattn_dense.ops.group_attention import routed
from visattn_dense.ops.group_attention.routed import routed_attention

from .bra import BiLevelRoutingAttention, record_routing
from .cswin import CrossShapedWindowAttention, StripeAttention
from .focused import FocusedLinearAttention, FocusedStripeAttention
from .ghost import GhostMlp, GhostSelfAttention
from .litemla import LiteMLA
from .self_attention import LePESelfAttention, SelfAttention
from .squeeze_excitation import SESelfAttention, SqueezeExcitation
from .tokens import (
    ConvolutionTokens,
    TokenPerformer,
    TokensToToken,
    TokenTransformer,
    WideSelfAttention,
)

__all__ = [
    'BiLevelRoutingAttention', 'ConvolutionTokens', 'CrossShapedWindowAttention',
    'FocusedLinearAttention', 'FocusedStripeAttention', 'GhostMlp', 'GhostSelfAttention',
    'LePESelfAttention', 'LiteMLA', 'SESelfAttention', 'SelfAttention', 'SqueezeExcitation',
    'StripeAttention', 'TokenPerformer', 'TokenTransformer', 'TokensToToken', 'WideSelfAttention',
    'record_routing', 'routed', 'routed_attention',
]
