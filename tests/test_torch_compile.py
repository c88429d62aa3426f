"""torch.compile in training: gradients as without it, and one graph for many blocks."""
import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from visattn_dense.attention import FocusedLinearAttention, LePESelfAttention
from visattn_dense.backbones import BiFormer, CSWin
from visattn_dense.layers import TransformerBlock, drop_path_rates

ATTENTION = {
    'self-attention': lambda: LePESelfAttention(16, 2),
    'focused linear': lambda: FocusedLinearAttention(16, 2, native_size=(6, 7)),
}


@pytest.fixture(autouse=True)
def nothing_compiled_yet():
    torch._dynamo.reset()


def gradients(model: nn.Module, compiled: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    sum(level.square().mean() for level in compiled(x)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_gradients_are_those_of_the_model_that_is_not_compiled():
    torch.manual_seed(0)
    model = BiFormer(dict(embed_dims=(16, 24, 32, 48), depths=(1, 1, 1, 1), mlp_ratio=3.,
                          overlapping=True), n_win=3, head_dim=8, topks=(1, 2, 4, -2))
    x = torch.randn(1, 3, 64, 96)
    expected = gradients(model, model, x)
    found = gradients(model, torch.compile(model, fullgraph=True, backend='aot_eager'), x)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize('attention', ATTENTION)
def test_blocks_that_differ_in_their_drop_rate_share_a_graph(attention: str):
    """Compiled block by block, as users compile deep models: not once for each block."""
    (rates,) = drop_path_rates(.3, (6,))
    counter = CompileCounter()
    x = torch.randn(2, 6, 7, 16)
    for rate in rates:
        block = TransformerBlock(16, ATTENTION[attention](), drop_path=rate).train()
        block.compile(fullgraph=True, backend=counter)
        x = block(x).detach()
    # One graph for the rate 0, which drops nothing, and one for all others.
    assert counter.frame_count == 2


def test_blocks_are_compiled_where_they_stand():
    """`--compile`: one graph for like blocks; names, results and the stem stay as they are."""
    torch.manual_seed(0)
    model = CSWin(dict(embed_dim=16, depths=(1, 3, 1, 1), num_heads=(2, 2, 4, 4),
                       stripe_widths=(1, 2, 7, 7))).eval()
    x = torch.randn(1, 3, 64, 96)
    names, expected = list(model.state_dict()), model(x)
    counter = CompileCounter()
    model.compile_blocks(backend=counter, fullgraph=True)
    for found, wanted in zip(model(x), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert list(model.state_dict()) == names
    assert counter.frame_count == 4


@pytest.mark.parametrize('options', [
    {}, dict(options={'layout_optimization': True}), dict(mode='reduce-overhead'),
    dict(backend='aot_eager')], ids=str)
def test_inductor_knows_the_options_of_the_blocks(options: dict):
    """torch.compile raises on unknown options, and on options beside a mode."""
    model = CSWin(dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4),
                       stripe_widths=(1, 2, 7, 7)))
    model.compile_blocks(**options)


def test_the_first_size_has_graphs_of_fixed_sizes():
    """Graphs with symbols take long to trace: a training at one size never waits for them."""
    model = CSWin(dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4),
                       stripe_widths=(1, 2, 7, 7))).eval()
    with_symbols = []

    def count(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        with_symbols.append(any(isinstance(value, torch.SymInt) for value in inputs))
        return graph

    model.compile_blocks(backend=count, fullgraph=True)
    model(torch.randn(1, 3, 64, 96))
    assert with_symbols == [False] * 4


def test_a_compiled_model_can_be_copied_and_pickled():
    model = CSWin(dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4),
                       stripe_widths=(1, 2, 7, 7))).eval()
    model.compile_blocks(backend='eager')
    x = torch.randn(1, 3, 64, 96)
    expected = model(x)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for found, wanted in zip(copied(x), expected, strict=True):
            torch.testing.assert_close(found, wanted)
