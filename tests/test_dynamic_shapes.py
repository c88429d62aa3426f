"""torch.compile(dynamic=True): one graph for all sizes of a map, equal to eager."""
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from visattn_dense.attention import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    LiteMLA,
    SelfAttention,
    TokenPerformer,
    TokenTransformer,
)

# Divisible by the windows below in both directions, in one, in none; square, wide and high.
SIZES = [(36, 42), (42, 36), (37, 43), (48, 48), (40, 41), (53, 37), (36, 61)]

MODULES = {
    'cross-shaped windows': lambda: CrossShapedWindowAttention(16, 2, stripe_width=6),
    'cross-shaped windows, masked': lambda: CrossShapedWindowAttention(
        16, 2, stripe_width=6, mask_padding=True),
    'whole map': lambda: CrossShapedWindowAttention(16, 2, stripe_width=None),
    'focused linear': lambda: FocusedLinearAttention(16, 2, native_size=(14, 14)),
    'focused linear, stripes': lambda: FocusedLinearAttention(16, 2, native_size=(14, 14),
                                                              stripe_width=6),
    'bi-level routing': lambda: BiLevelRoutingAttention(16, 2, n_win=6, topk=3),
    'multi-scale ReLU linear': lambda: LiteMLA(16, 2),
    'self-attention': lambda: SelfAttention(16, 2),
    'performer': lambda: TokenPerformer(16, 8, dropout=0.),
    'token transformer': lambda: TokenTransformer(16, 8),
}


@pytest.mark.parametrize('name', MODULES)
def test_one_graph_serves_every_size(name: str):
    torch.manual_seed(0)
    torch._dynamo.reset()
    module: nn.Module = MODULES[name]().eval()
    counter = CompileCounter()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=counter)
    with torch.no_grad():
        for size in SIZES:
            x = torch.randn((1, 16, *size) if isinstance(module, LiteMLA) else (1, *size, 16))
            torch.testing.assert_close(compiled(x), module(x), rtol=1e-4, atol=1e-5)
    # Equal height and width may be a graph of their own.
    assert counter.frame_count <= 2
