"""EfficientViT: attention against its equation and the official code, backbone against timm too."""
import pytest
import timm
import torch
from torch import nn

from tests.backbone_suite import BackboneSuite
from tests.comparing import outputs_and_gradients
from tests.goldens import assert_gradient, assert_optimized_outputs, assert_outputs, load_case
from visattn_dense.attention import LiteMLA
from visattn_dense.attention.naive import as_naive
from visattn_dense.backbones import EfficientViT
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError
from visattn_dense.layers import ConvPair, fold_batch_norm

SMALL = dict(stem_dim=8, dims=(8, 16, 24, 40), depths=(1, 1, 2, 2), head_dim=8, stem='separable',
             stages=('mbconv', 'mbconv', 'attention', 'attention'), strided_ratios=(4, 4, 4, 4),
             expand_ratios=(4, 4, 4, 4), act='hardswish', norm_eps=1e-5)


class TestEfficientViTB(BackboneSuite):
    backbone = EfficientViT
    arch = SMALL


class TestEfficientViTL(BackboneSuite):
    backbone = EfficientViT
    arch = dict(SMALL, stem='pair', stages=('fused', 'fused', 'mbconv', 'attention'),
                expand_ratios=(4, 4, 4, 6), act='gelu_tanh', norm_eps=1e-7)


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (7, 13), (11, 17), (2, 31)])
@pytest.mark.parametrize('scales', [(5,), (3, 7), ()])
def test_attention_is_its_equation(size, scales):
    kwargs = dict(head_dim=5, out_dim=11, scales=scales)
    fast = LiteMLA(13, 3, **kwargs).double().eval()
    naive = as_naive(LiteMLA(13, 3, **kwargs).double().eval())
    naive.load_state_dict(fast.state_dict())
    x = torch.randn(2, 13, *size, dtype=torch.float64)
    for a, b in zip(outputs_and_gradients(fast, x), outputs_and_gradients(naive, x), strict=True):
        torch.testing.assert_close(a, b)


def test_three_positions_by_hand():
    """Weights q·k over their sum: 1/4 and 3/4; 1 and 0; and for a query of all zeros, nothing."""
    attn = LiteMLA(2, 1, scales=())
    q = [[1., 0.], [0., 2.], [-1., -1.]]
    k = [[1., 1.], [3., -1.], [-5., 0.]]
    v = [[4., 1.], [8., 3.], [100., 100.]]
    qkv = torch.tensor([q, k, v]).permute(0, 2, 1).reshape(1, 6, 1, 3)
    torch.testing.assert_close(attn.attend(qkv)[0, :, 0].T,
                               torch.tensor([[7., 2.5], [4., 1.], [0., 0.]]))


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
def test_large_activations_in_half_precision(dtype):
    """Sums over 1024 products of 1e4 by 1e4 are far beyond float16."""
    attn = LiteMLA(24, 3).eval()
    x = 1e4 * torch.randn(2, 24, 32, 32)
    with torch.no_grad():
        exact = attn(x)
        with torch.autocast('cpu', dtype=dtype):
            rough = attn(x)
    assert rough.dtype == dtype and rough.isfinite().all()
    assert (rough.float() - exact).norm() < .05 * exact.norm()


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_attention_keeps_float64_and_takes_both_memory_formats(layout):
    attn = LiteMLA(24, 3).eval().double()
    x = torch.randn(2, 24, 5, 7, dtype=torch.float64)
    out = attn(x.contiguous(memory_format=layout))
    assert out.dtype == torch.float64
    torch.testing.assert_close(out, attn(x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('kwargs, message', [
    (dict(dim=10, num_heads=4), 'num_heads'),
    (dict(dim=12, num_heads=3, scales=(5, 4)), 'scales'),
])
def test_bad_dimensions_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        LiteMLA(**kwargs)


@pytest.mark.parametrize('head_dim', [0, 32])
def test_a_head_wider_than_the_stage_is_refused(head_dim):
    with pytest.raises(UserError, match=f'24 in stage 2; got {head_dim}'):
        EfficientViT(dict(EfficientViT.archs['b0'], dims=(8, 16, 24, 40), head_dim=head_dim))


@pytest.mark.parametrize('case, kwargs', [
    ('attn_litemla_scales35', dict(num_heads=8, out_dim=48, scales=(3, 5))),
    ('attn_litemla_scales5', dict(num_heads=4)),
    ('attn_litemla_small_map', dict(num_heads=2)),
])
def test_golden_attention(case, kwargs):
    meta, arrays, state, x = load_case(case)
    attn = LiteMLA(64, **kwargs).eval()
    attn.load_state_dict(state)
    out = attn(x)
    assert_outputs({'out': out}, arrays)
    assert_gradient([out], x, arrays['grad'])


@pytest.mark.parametrize('case', ['efficientvit_b0_128x160', 'efficientvit_l0_64x96'])
@pytest.mark.parametrize('folded', [False, True])
def test_golden_backbone(case, folded, tmp_path):
    meta, arrays, state, x = load_case(case)
    model = EfficientViT(meta['arch']['variant'])
    torch.save({'state_dict': {f'backbone.{name}': tensor for name, tensor in state.items()}},
               tmp_path / 'official.pt')
    report = load_pretrained(model, tmp_path / 'official.pt')
    assert report.fraction == 1 and report.layout == 'official' and not report.unused
    model.eval()
    outs = (fold_batch_norm(model) if folded else model)(x)
    assert_outputs({f'out{i}': out for i, out in enumerate(outs)}, arrays)
    assert_gradient(list(outs), x, arrays['grad'])
    assert_optimized_outputs(model, x, arrays)


def randomised(model):
    """Every tensor, BatchNorm's statistics included, away from its initial value."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith(('running_var', 'norm.weight')):
                tensor.uniform_(.8, 1.2)
            elif name.endswith(('bias', 'running_mean')):
                tensor.normal_(std=.1)
    return model.eval()


@pytest.mark.parametrize('arch', ['b0', 'b1', 'b2', 'b3', 'l1', 'l2'])
def test_weights_in_timms_layout(arch, tmp_path):
    other = randomised(timm.create_model(f'efficientvit_{arch}', num_classes=0))
    for module in other.modules():
        if hasattr(module, 'aggreg'):
            # timm divides by the sum + 1e-5; the weights were trained with 1e-15.
            module.eps = 1e-15
    torch.save(other.state_dict(), tmp_path / 'timm.pth')
    model = EfficientViT(arch).eval()
    report = load_pretrained(model, tmp_path / 'timm.pth')
    assert report.fraction == 1 and report.layout == 'timm'
    assert all(name.startswith('head.') for name in report.unused)
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = other.forward_intermediates(x, intermediates_only=True)
        for a, b in zip(model(x), expected, strict=True):
            assert (a - b).norm() < 1e-5 * b.norm()


def test_largest_variant_has_timms_tensors():
    """Names and shapes alone: the weights take a gigabyte."""
    with torch.device('meta'):
        other = timm.create_model('efficientvit_l3', num_classes=0).state_dict()
        own = EfficientViT('l3').state_dict()
    renamed = EfficientViT.layouts['timm'](other)
    assert {name: tensor.shape for name, tensor in renamed.items()
            if not name.startswith('head.')} == {name: t.shape for name, t in own.items()}


# Widths of the official classification head: 1×1 convolution, then two linear layers.
HEADS = {'b1': (1536, 1600), 'b2': (2304, 2560), 'b3': (2304, 2560), 'l1': (3072, 3200),
         'l2': (3072, 3200), 'l3': (6144, 6400)}


@pytest.mark.parametrize('arch, millions', [('b1', 9.1), ('b2', 24), ('b3', 49), ('l1', 53),
                                            ('l2', 64), ('l3', 246)])
def test_parameters_are_the_published_ones(arch, millions):
    """Published counts (the authors' README) hold the classification head."""
    with torch.device('meta'):
        model = EfficientViT(arch)
    first, second = HEADS[arch]
    head = (model.out_channels[-1] + 2) * first + (first + 2) * second + (second + 1) * 1000
    count = sum(p.numel() for p in model.parameters()) + head
    assert count / 1e6 == pytest.approx(millions, abs=.75)


@pytest.mark.parametrize('arch, eps', [('b0', 1e-5), ('l0', 1e-7)])
def test_eps_is_the_released_one(arch, eps):
    def found(model):
        return {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    with torch.device('meta'):
        assert found(EfficientViT(arch)) == {eps}
        assert found(EfficientViT(arch, norm_eps=1e-3)) == {1e-3}


def test_folding_needs_evaluation_mode():
    with pytest.raises(ValueError, match='eval'):
        fold_batch_norm(EfficientViT(SMALL))


def test_folding_leaves_no_batch_norm():
    model = fold_batch_norm(EfficientViT('b0').eval())
    assert not [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]


def test_another_variants_weights_are_refused(tmp_path):
    torch.save(EfficientViT('b0').state_dict(), tmp_path / 'b0.pth')
    with pytest.raises(UserError, match='does not fit EfficientViT'):
        load_pretrained(EfficientViT(SMALL), tmp_path / 'b0.pth')


def test_gradients_are_channels_last_whatever_the_head_gives():
    """Norms and depthwise convolutions are several times slower on gradients in another layout."""
    model = EfficientViT('b0').train()
    layouts = []

    def watch(module: nn.Module, args: tuple, out: torch.Tensor) -> None:
        out.grad_fn.register_prehook(lambda grads: layouts.append(
            grads[0].is_contiguous(memory_format=torch.channels_last)))

    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_hook(watch)
    outs = model(torch.randn(2, 3, 96, 64))
    torch.autograd.backward(outs, [torch.randn(out.shape) for out in outs])     # NCHW
    assert layouts == [True] * len(norms)


def test_gradients_of_many_results_at_once():
    model, x = EfficientViT('b0').eval(), torch.randn(1, 3, 32, 32, requires_grad=True)

    def numbers(x: torch.Tensor) -> torch.Tensor:
        return model(x)[-1].mean((2, 3))[0, :3]

    expected = torch.stack([torch.autograd.grad(each, x, retain_graph=True)[0]
                            for each in numbers(x)])
    batched, = torch.autograd.grad(numbers(x), x, torch.eye(3), is_grads_batched=True)
    torch.testing.assert_close(batched, expected)
    torch.testing.assert_close(torch.func.jacrev(numbers)(x), expected)


def test_a_trace_with_gradients_is_the_model():
    model, x = EfficientViT('b0').eval(), torch.randn(1, 3, 32, 32)
    for a, b in zip(torch.jit.trace(model, x)(x), model(x), strict=True):
        torch.testing.assert_close(a, b)


def test_a_layer_more_or_one_layer_twice_changes_no_branch():
    x, branch = torch.randn(1, 8, 5, 5), ConvPair(8, 8).eval()
    branch.probe = nn.Conv2d(8, 1, 1)
    torch.testing.assert_close(branch(x), branch.conv2(branch.conv1(x)))
    branch.conv2 = branch.conv1
    torch.testing.assert_close(branch(x), branch.conv1(branch.conv1(x)))
