"""BiFormer: routing attention against its equation and the official code, and the backbone."""
import copy
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from tests.backbone_suite import BackboneSuite
from tests.comparing import outputs_and_gradients
from tests.goldens import assert_gradient, assert_optimized_outputs, assert_outputs, load_case
from visattn_dense.attention import (
    BiLevelRoutingAttention,
    LePESelfAttention,
    SelfAttention,
    record_routing,
    routed,
    routed_attention,
)
from visattn_dense.attention.bra import TopkRouting
from visattn_dense.attention.naive import as_naive
from visattn_dense.backbones import BiFormer
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError

SMALL = dict(embed_dims=(16, 24, 32, 48), depths=(1, 1, 2, 1), mlp_ratio=3., overlapping=True)


class TestBiFormer(BackboneSuite):
    backbone = BiFormer
    arch = SMALL
    kwargs = dict(n_win=3, head_dim=8, topks=(1, 2, 4, -2))


class TestBiFormerSTL(BackboneSuite):
    backbone = BiFormer
    arch = dict(SMALL, overlapping=False, mlp_ratio=4.)
    kwargs = dict(n_win=2, head_dim=8, topks=(1, 2, 0, -1))


OPTIONS = {
    'plain': dict(),
    'qk_dim': dict(qk_dim=12),
    'all regions': dict(topk=99),
    'no lepe': dict(side_dwconv=0),
    'no output projection': dict(param_attention='qkv'),
    'soft': dict(soft_routing=True),
    'soft, parametrised': dict(soft_routing=True, diff_routing=True, param_routing=True),
    'hard, differentiable': dict(diff_routing=True),
    'average pooling': dict(kv_downsample_mode='avgpool', kv_downsample_ratio=2),
    'max pooling': dict(kv_downsample_mode='maxpool', kv_downsample_ratio=2),
    'adaptive average': dict(kv_downsample_mode='ada_avgpool', kv_per_win=2),
    'adaptive max': dict(kv_downsample_mode='ada_maxpool', kv_per_win=2),
}


@pytest.mark.parametrize('name', OPTIONS)
@pytest.mark.parametrize('size', [(7, 11), (12, 6)])
def test_attention_is_its_equation(name, size, monkeypatch):
    monkeypatch.setattr(routed, 'CHUNK_BYTES', 10_000)           # several chunks
    options = {'n_win': 3, 'topk': 4, **OPTIONS[name]}
    fast = BiLevelRoutingAttention(20, 4, **options).double()
    naive = as_naive(BiLevelRoutingAttention(20, 4, **options).double())
    naive.load_state_dict(fast.state_dict())
    x = torch.randn(2, *size, 20, dtype=torch.float64)
    pairs = zip(*(outputs_and_gradients(module, x, allow_unused=True) for module in (fast, naive)),
                strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize('name', ['soft', 'average pooling', 'adaptive max'])
@torch.no_grad()
def test_one_exported_attention_serves_every_batch(name):
    attention = BiLevelRoutingAttention(8, 2, n_win=3, topk=2, **OPTIONS[name]).eval()
    program = torch.export.export(attention, (torch.randn(2, 12, 9, 8),), strict=False,
                                  dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)).module()
    for batch in (1, 3):
        x = torch.randn(batch, 12, 9, 8)
        torch.testing.assert_close(program(x), attention(x))


@pytest.mark.parametrize('size', [(1, 1), (2, 5)])
def test_a_map_smaller_than_its_regions_is_padded(size):
    fast = BiLevelRoutingAttention(8, 2, n_win=7, topk=3).double()
    naive = as_naive(BiLevelRoutingAttention(8, 2, n_win=7, topk=3).double())
    naive.load_state_dict(fast.state_dict())
    x = torch.randn(1, *size, 8, dtype=torch.float64)
    torch.testing.assert_close(fast(x), naive(x))


def test_routed_attention_by_hand():
    """Two regions of one token, each routed to the other: the value of the other comes out."""
    q, k = torch.randn(1, 2, 1, 1, 3), torch.randn(1, 2, 1, 1, 3)
    v = torch.tensor([[1., 2.], [3., 4.]]).view(1, 2, 1, 1, 2)
    out = routed_attention(q, k, v, torch.tensor([[[1], [0]]]), scale=1.)
    assert out.flatten().tolist() == [3, 4, 1, 2]


def test_routed_attention_operator_is_sound():
    """torch's own check: schema, fake tensors, autograd registration, AOT dispatch."""
    def args(**kwargs):
        tensors = [torch.randn(*shape, **kwargs) for shape in
                   [(2, 4, 3, 2, 5), (2, 4, 6, 2, 5), (2, 4, 6, 2, 7)]]
        index = torch.randint(4, (2, 4, 3))
        return *tensors, index

    for weight in (None, torch.rand(2, 4, 3, requires_grad=True)):
        torch.library.opcheck(torch.ops.visattn.routed_attention.default,
                              (*args(requires_grad=True), weight, .3))


def test_memory_does_not_grow_with_topk():
    """What is allocated at a time is bounded by q, k, v and a chunk, forward and back."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        elements = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(tensor, torch.Tensor):
                    self.elements = max(self.elements, tensor.numel())
            return out

    def largest(attn: BiLevelRoutingAttention) -> int:
        with Largest() as mode:
            attn(torch.randn(1, 64, 64, 32, requires_grad=True)).sum().backward()
        return mode.elements

    saved = routed.CHUNK_BYTES
    routed.CHUNK_BYTES = 2**20
    try:
        fast = largest(BiLevelRoutingAttention(32, 2, n_win=8, topk=32))
    finally:
        routed.CHUNK_BYTES = saved
    naive = largest(as_naive(BiLevelRoutingAttention(32, 2, n_win=8, topk=32)))
    assert naive >= 64 * 64 * 32 * 32                        # the copies, or the matrices
    assert fast <= 2**20 / 4 + 64 * 64 * 3 * 32


def test_routing_can_be_recorded():
    model = BiFormer(SMALL, n_win=4, head_dim=8, topks=(1, 2, 4, -2)).eval()
    with torch.no_grad(), record_routing(model) as routing:
        model(torch.randn(2, 3, 64, 96))
    assert {name: tuple(index.shape) for name, index in routing.items()} == {
        'stages.0.0.attn': (2, 16, 1), 'stages.1.0.attn': (2, 16, 2),
        'stages.2.0.attn': (2, 16, 4), 'stages.2.1.attn': (2, 16, 4)}
    before = len(routing)
    model(torch.randn(1, 3, 64, 64))
    assert len(routing) == before and routing['stages.0.0.attn'].shape[0] == 2


@pytest.mark.parametrize('options, message', [
    (dict(qk_dim=18), 'num_heads'), (dict(num_heads=3), 'num_heads'), (dict(topk=0), 'topk'),
    (dict(param_attention='none'), 'qkvo'), (dict(kv_downsample_mode='fracpool'), 'ada_maxpool'),
    (dict(param_routing=True), 'diff_routing'), (dict(side_dwconv=4), 'odd'),
])
def test_bad_options_name_the_choices(options, message):
    with pytest.raises(ValueError, match=message):
        BiLevelRoutingAttention(**{'dim': 20, 'num_heads': 4, **options})


def test_without_auto_pad_a_bad_size_is_an_error():
    attn = BiLevelRoutingAttention(8, 2, n_win=4, auto_pad=False)
    with pytest.raises(ValueError, match='10x8'):
        attn(torch.zeros(1, 10, 8, 8))
    with pytest.raises(UserError, match='topks'):
        BiFormer(SMALL, head_dim=8, topks=(1, 4, 16, -3))


@pytest.mark.parametrize('head_dim', [0, 32])
def test_a_head_wider_than_the_stage_is_refused(head_dim):
    with pytest.raises(UserError, match=f'16 in stage 0; got {head_dim}'):
        BiFormer(dict(SMALL, embed_dims=(16, 32, 64, 128)), head_dim=head_dim)


@pytest.mark.parametrize('attn', [SelfAttention(24, 3), LePESelfAttention(24, 3, qkv_bias=True)])
def test_self_attention_is_torchs(attn):
    x = torch.randn(2, 5, 7, 24)
    reference = torch.nn.MultiheadAttention(24, 3, bias=True, batch_first=True)
    with torch.no_grad():
        reference.in_proj_weight.copy_(attn.qkv.weight)
        if attn.qkv.bias is not None:
            reference.in_proj_bias.copy_(attn.qkv.bias)
        reference.out_proj.weight.copy_(attn.proj.weight)
        reference.out_proj.bias.copy_(attn.proj.bias)
        expected = reference(*[x.flatten(1, 2)] * 3)[0].view_as(x)
        if isinstance(attn, LePESelfAttention):
            expected = expected + torch.nn.functional.linear(attn.lepe(x), attn.proj.weight)
    torch.testing.assert_close(attn(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_huge_activations_stay_finite(dtype):
    attn = BiLevelRoutingAttention(32, 2, n_win=3, topk=4)
    with torch.autocast('cpu', dtype=dtype):
        assert attn(torch.randn(1, 9, 9, 32) * 1e4).isfinite().all()


GOLDEN = {
    'attn_bra_identity': dict(kv_downsample_mode='identity'),
    'attn_bra_avgpool': dict(kv_downsample_mode='avgpool', kv_downsample_ratio=2),
    'attn_bra_maxpool': dict(kv_downsample_mode='maxpool', kv_downsample_ratio=2),
    'attn_bra_ada_avgpool': dict(kv_downsample_mode='ada_avgpool', kv_per_win=2),
    'attn_bra_ada_maxpool': dict(kv_downsample_mode='ada_maxpool', kv_per_win=2),
    'attn_bra_pad_qkdim': dict(topk=5, qk_dim=32, side_dwconv=3),
    'attn_bra_qkv_only': dict(param_attention='qkv'),
    'attn_bra_soft': dict(soft_routing=True, diff_routing=True, param_routing=True),
}


@pytest.mark.parametrize('case', GOLDEN)
def test_golden_attention(case):
    meta, arrays, state, x = load_case(case)
    attn = BiLevelRoutingAttention(48, 4, **{'n_win': 4, 'topk': 3, **GOLDEN[case]})
    attn.load_state_dict(state)
    out = attn(x)
    assert_outputs({'out': out}, arrays)
    assert_gradient([out], x, arrays['grad'])


@contextmanager
def ties_settled_in_float64(model: nn.Module, x: Tensor) -> Iterator[None]:
    """Where regions' logits are equal up to float32's rounding, take the one that wins in float64.

    One of the goldens has such a tie (2e-7 of the largest logit), and rounding, which differs from
    one CPU to the next, decides it; everything after it then differs in the third digit. Any other
    difference in the routing is an error.
    """
    reference = copy.deepcopy(model).double()
    with record_routing(reference) as exact, torch.no_grad():
        reference(x.double())

    def settle(router: TopkRouting, inputs: tuple[Tensor, Tensor], output: tuple[Tensor, Tensor]):
        (q, k), (weight, index), true = inputs, output, exact[names[router]]
        logits = q @ k.transpose(1, 2) * router.scale
        short = logits.gather(-1, index).amin(-1) - logits.gather(-1, true).amin(-1)
        assert short.max() < 2e-6 * logits.abs().max(), 'another routing, and not for a tie'
        return weight, true

    names = {module.router: name for name, module in model.named_modules()
             if isinstance(module, BiLevelRoutingAttention)}
    handles = [router.register_forward_hook(settle) for router in names]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize('case', ['biformer_tiny_128x128', 'biformer_tiny_160x200'])
def test_golden_backbone(case, tmp_path):
    meta, arrays, state, x = load_case(case)
    model = BiFormer('tiny', n_win=meta['arch']['n_win']).eval()
    torch.save({'model': state}, tmp_path / 'official.pth')
    report = load_pretrained(model, tmp_path / 'official.pth')
    assert report.fraction == 1 and report.layout == 'official'
    assert {name.split('.')[0] for name in report.unused} == {'norm', 'head'}
    with ties_settled_in_float64(model, x):
        outs = model(x)
        assert_outputs({f'out{i}': out for i, out in enumerate(outs)}, arrays)
        assert_gradient(list(outs), x, arrays['grad'])
        assert_optimized_outputs(model, x, arrays)


@pytest.mark.parametrize('arch, millions', [('tiny', 13.1), ('small', 25.5), ('base', 56.8)])
def test_parameters_are_the_published_ones(arch, millions):
    """Published counts hold the classifier and one BatchNorm before it, not four LayerNorms."""
    with torch.device('meta'):
        model = BiFormer(arch)
    width = model.out_channels[-1]
    count = sum(p.numel() for p in model.parameters())
    count += 1000 * width + 1000 - 2 * sum(model.out_channels[:3])
    assert count / 1e6 == pytest.approx(millions, abs=.06)
