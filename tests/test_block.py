"""Transformer blocks in a row: one operator for the end of a block and the start of the next."""
import copy
import weakref
from collections.abc import Callable
from functools import wraps

import pytest
import torch
import torch.nn.functional as F
from mmengine.runner.activation_checkpointing import turn_on_activation_checkpointing
from torch import Tensor, nn

from benchmarks import plan
from benchmarks.options import Size
from visattn_dense.backbones import BiFormer, CSWin, FLattenCSWin, T2TViT
from visattn_dense.backbones.base import DenseBackbone
from visattn_dense.layers import TransformerBlock
from visattn_dense.layers import half_weights as half_weights_module
from visattn_dense.layers.block import accepts_handover
from visattn_dense.layers.half_weights import half_weights

from .interpreting import fake_gpu
from .tiny_backbones import cross_arch


def blocks_of(rates: tuple[float, ...] = (0., .2, .4, .6)) -> nn.ModuleList:
    torch.manual_seed(0)
    blocks = nn.ModuleList(
        TransformerBlock(5, nn.Linear(5, 5), mlp_ratio=2., drop_path=rate) for rate in rates)
    for parameter in blocks.parameters():
        nn.init.normal_(parameter, std=.5)
    return blocks


class Trunk(DenseBackbone):
    """Its blocks are those of the test."""

    def __init__(self, **options) -> None:
        super().__init__(out_indices=(0,), out_channels=(5,), strides=(4,), **options)

    def stage_modules(self) -> list[list[nn.Module]]:
        return []


def equations(block: TransformerBlock, x: Tensor) -> Tensor:
    """The block by its definition."""
    def normed(norm: nn.LayerNorm) -> Tensor:
        return F.layer_norm(x, (5,), norm.weight, norm.bias, norm.eps)

    x = x + block.drop_path(block.attn(normed(block.norm1)))
    return x + block.drop_path(block.mlp(normed(block.norm2)))


def in_turn(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = equations(block, x)
    return x


def results(run: Callable[[nn.ModuleList, Tensor], Tensor], blocks: nn.ModuleList) -> list[Tensor]:
    """The output, and the gradients of the input and of all weights that have one."""
    torch.manual_seed(1)
    x = torch.randn(6, 7, 5, requires_grad=True)
    out = run(blocks, x)
    blocks.zero_grad()
    out.square().sum().backward()
    return [out, x.grad, *(p.grad for p in blocks.parameters() if p.grad is not None)]


def assert_same(found: list[Tensor], expected: list[Tensor]) -> None:
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('frozen', [0, 2])
@pytest.mark.parametrize('with_cp', [False, True])
def test_blocks_in_a_row_compute_their_equations(training, frozen, with_cp):
    """To the bit on a CPU, with the same samples dropped; the first blocks are frozen or not."""
    model, blocks = Trunk(with_cp=with_cp).train(training), blocks_of().train(training)
    for block in blocks[:frozen]:
        block.eval().requires_grad_(False)
    assert_same(results(model.run_blocks, blocks), results(in_turn, blocks))


@pytest.mark.parametrize('training', [False, True])
def test_a_block_alone_computes_its_equations(training):
    (block,) = blocks = blocks_of((.4,)).train(training)
    assert_same(results(lambda _, x: block(x), blocks), results(in_turn, blocks))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_autocast_changes_no_bit(dtype):
    model, blocks = Trunk(), blocks_of()

    def alone(blocks: nn.ModuleList, x: Tensor) -> Tensor:
        for block in blocks:
            x = model.run_block(block, x)
        return x

    with torch.autocast('cpu', dtype):
        assert_same(results(model.run_blocks, blocks), results(alone, blocks))


def test_a_hook_sees_the_residual_stream():
    model, blocks, seen = Trunk().eval(), blocks_of().eval(), []
    for block in blocks:
        block.register_forward_hook(lambda _block, inputs, out: seen.append((inputs, out)))
    x = torch.randn(6, 7, 5)
    model.run_blocks(blocks, x)
    for block, (inputs, out) in zip(blocks, seen, strict=True):
        assert len(inputs) == 1 and torch.equal(inputs[0], x)
        x = equations(block, x)
        assert torch.equal(out, x)


def halved(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Takes x alone, as wrappers of others do."""
    @wraps(forward)
    def wrapper(x: Tensor) -> Tensor:
        return forward(x) / 2
    return wrapper


class Scaled(TransformerBlock):
    """A block of a user, who knows `forward(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def divide(_module: nn.Module, _inputs: tuple, out: Tensor) -> None:
    out.div_(2)


CHANGES = {
    'a hook gives another output': lambda block: block.register_forward_hook(
        lambda _block, _inputs, out: out / 2),
    'a hook writes to the output': lambda block: block.register_forward_hook(divide),
    'a hook gives another input': lambda block: block.register_forward_pre_hook(
        lambda _block, inputs: (inputs[0] / 2,)),
    'a hook of norm1': lambda block: block.norm1.register_forward_hook(divide),
    'another norm1': lambda block: setattr(block, 'norm1', nn.Identity()),
    'a forward set by hand': lambda block: setattr(block, 'forward', halved(block.forward)),
    'a forward of norm1 set by hand': lambda block: setattr(
        block.norm1, 'forward', halved(block.norm1.forward)),
    'a subclass': lambda block: setattr(block, '__class__', Scaled),
}


@torch.no_grad()
@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('place', [0, 1, 3])
def test_what_changes_a_block_acts(change, place):
    """As in blocks that are called one by one."""
    model, blocks, x = Trunk().eval(), blocks_of().eval(), torch.randn(6, 7, 5)
    before = model.run_blocks(blocks, x)
    CHANGES[change](blocks[place])
    expected = x
    for block in blocks:
        expected = block(expected)
    assert torch.equal(model.run_blocks(blocks, x), expected)
    assert not torch.allclose(expected, before)


def test_mmengines_checkpointing_gives_the_same_gradients():
    """`activation_checkpointing` of a config replaces the forward of blocks."""
    model, blocks = Trunk().train(), blocks_of().train()
    expected = results(model.run_blocks, blocks)
    turn_on_activation_checkpointing(blocks, ['1', '2'])
    assert_same(results(model.run_blocks, blocks), expected)


def test_a_hook_that_is_gone_leaves_nothing():
    (block,) = blocks_of((0.,))
    assert accepts_handover(block)
    handle = block.register_forward_hook(divide)
    assert not accepts_handover(block)
    handle.remove()
    assert accepts_handover(block) and accepts_handover(copy.deepcopy(block))


OF_DEPTH = {
    'CSWin': lambda depth: CSWin(dict(cross_arch(), depths=(1, 1, depth, 1))),
    'FLattenCSWin': lambda depth: FLattenCSWin(dict(cross_arch(), depths=(1, 1, depth, 1)),
                                               img_size=64),
    'T2TViT': lambda depth: T2TViT(
        dict(embed_dim=32, depth=depth, num_heads=2, mlp_ratio=2., tokens='performer'),
        img_size=64, out_indices=(3,)),
    'BiFormer without positional convolutions': lambda depth: BiFormer(
        dict(embed_dims=(16, 24, 32, 48), depths=(1, 1, depth, 1), mlp_ratio=3., overlapping=False),
        n_win=3, head_dim=8, topks=(1, 2, -1, -1)),
}


@fake_gpu
@pytest.mark.parametrize('family', OF_DEPTH)
def test_only_the_last_block_in_a_row_adds_alone(family):
    """On a GPU, the other blocks start no kernel that only adds or only normalises."""
    shallow, deep = (plan.counted(lambda n=n: OF_DEPTH[family](n), 1, Size(64, 64)).launches
                     for n in (1, 4))
    assert deep['aten::add'] == shallow['aten::add']
    norm = 'visattn::add_norm_triton'
    assert deep[norm] == shallow[norm] + 2 * 3


def cast_block(dim: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))


def test_frozen_weights_that_are_cast_stay_out_of_the_graph():
    blocks = [cast_block() for _ in range(3)]
    for frozen in (blocks[0], blocks[1][0], blocks[2]):
        frozen.requires_grad_(False)
    x = torch.randn(2, 4)
    with torch.autocast('cpu', torch.bfloat16), half_weights(blocks, x):
        outs = [x := block(x) for block in blocks[:2]]
        assert [out.requires_grad for out in outs] == [False, True]
        assert blocks[1][0].weight.dtype == blocks[1][2].weight.dtype == torch.bfloat16
        assert not blocks[1][0].weight.requires_grad
    assert all(type(p) is nn.Parameter for block in blocks for p in block.parameters())


def test_a_cast_without_memory_leaves_the_weights(monkeypatch):
    block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False))
    copies = half_weights_module._copies

    def fails(tensors, dtypes):
        if not tensors[0].requires_grad:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return copies(tensors, dtypes)

    monkeypatch.setattr(half_weights_module, '_copies', fails)
    with (pytest.raises(torch.OutOfMemoryError), torch.autocast('cpu', torch.bfloat16),
          half_weights([block], torch.ones(1, 4))):
        pass
    assert block[0].weight is block[0]._parameters['weight']


def test_a_gradient_of_a_gradient_goes_through_casts():
    block, x = cast_block(), torch.randn(2, 4, requires_grad=True)
    found = []
    for blocks in ([block], []):
        with torch.autocast('cpu', torch.bfloat16), half_weights(blocks, x):
            out = block(x)
        grad, = torch.autograd.grad(out.square().sum(), block[0].weight, create_graph=True)
        found.append(torch.autograd.grad(grad.square().sum(), [x, *block.parameters()]))
    for ours, autocast in zip(*found, strict=True):
        assert torch.equal(ours, autocast) and ours.abs().sum() > 0


def test_a_layer_that_was_replaced_is_freed_and_a_layer_by_itself_is_too():
    block, alone, x = cast_block(), nn.Linear(4, 4), torch.randn(2, 4)
    gone = weakref.ref(block[0]), weakref.ref(alone)
    with torch.autocast('cpu', torch.bfloat16), half_weights([block, alone], x):
        block(x)
    block[0] = nn.Linear(4, 4)
    del alone
    assert [each() for each in gone] == [None, None]
    with torch.autocast('cpu', torch.bfloat16), half_weights([block], x):
        assert block(x).shape == (2, 4)


def test_hooks_in_training_see_the_parameters_of_other_blocks():
    """Weights of several blocks are cast together only where nobody can look at them."""
    model, seen = CSWin('tiny', drop_path_rate=0.), []
    other = model.stage2[1].mlp.fc1
    model.stage2[0].register_forward_hook(lambda *_: seen.append(type(other.weight)))
    for training in (True, False):
        with torch.autocast('cpu', torch.bfloat16), torch.set_grad_enabled(training):
            model.train(training)(torch.randn(1, 3, 32, 32))
    assert seen == [nn.Parameter] * 2
