"""FLatten-CSWin: attention against its equation and the official code, and the backbone."""
import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.backbone_suite import BackboneSuite
from tests.comparing import outputs_and_gradients
from tests.goldens import assert_gradient, assert_outputs, load_case
from visattn_dense.attention import (
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    FocusedStripeAttention,
)
from visattn_dense.attention.naive import as_naive
from visattn_dense.backbones import FLattenCSWin
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError
from visattn_dense.layers import optimize_for_inference, resize_position_grid
from visattn_dense.ops.depthwise import depthwise

ARCH = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 7, 7))


class TestFLattenCSWin(BackboneSuite):
    """Every kind of block: linear on the whole map, in stripes, softmax, and a mixed stage."""
    backbone = FLattenCSWin
    arch = ARCH
    kwargs = dict(attn_type='LLMS1', img_size=96, linear_stripe_widths=(None, 5, 3, None))


def randomize(module):
    """Position tables and scales start at zero; give every parameter something to do."""
    with torch.no_grad():
        for p in module.parameters():
            p.add_(torch.randn_like(p) * .3)
    return module


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (7, 13), (11, 17), (2, 31)])
@pytest.mark.parametrize('stripe_width', [1, 3, 7, None])
@pytest.mark.parametrize('kernel_size, focusing_factor', [(5, 3), (1, 2.5)])
def test_attention_is_its_equation(size, stripe_width, kernel_size, focusing_factor):
    kwargs = dict(native_size=(7, 13), stripe_width=stripe_width, kernel_size=kernel_size,
                  focusing_factor=focusing_factor)
    fast = randomize(FocusedLinearAttention(22, 2, **kwargs)).double()
    naive = as_naive(FocusedLinearAttention(22, 2, **kwargs).double())
    naive.load_state_dict(fast.state_dict())
    x = torch.randn(2, *size, 22, dtype=torch.float64)
    for a, b in zip(outputs_and_gradients(fast, x), outputs_and_gradients(naive, x), strict=True):
        torch.testing.assert_close(a, b)


def silent(attention):
    """Switch the convolutions off."""
    with torch.no_grad():
        for name, p in attention.named_parameters():
            if name.startswith(('dwc', 'get_v')):
                p.zero_()
    return attention


def test_two_tokens_by_hand():
    """q = (2, 1) and keys (1, 0), (0, 3), cubed to the directions (8, 1), (1, 0), (0, 1) of the
    same norms: the weights are 8·1 and 1·3 of 11, so v = 11, 22 gives (8·11 + 3·22)/11 = 14."""
    attention = silent(FocusedStripeAttention(2, 1, direction='full', native_size=(1, 2)))
    q, k = torch.tensor([[2., 1.], [2., 1.]]), torch.tensor([[1., 0.], [0., 3.]])
    v = torch.tensor([[11., 0.], [22., 0.]])
    out = attention(torch.stack([q, k, v], dim=1).reshape(1, 1, 2, 3, 2))
    torch.testing.assert_close(out[0, 0, :, 0], torch.tensor([14., 14.]), rtol=1e-4, atol=0)


def test_one_kernel_serves_all_heads():
    """The convolution on the values is DWC, the same for each head, and LePE, its own."""
    attention = randomize(FocusedStripeAttention(6, 3, direction='full', native_size=(4, 5)))
    v = torch.randn(2, 4, 5, 6)
    heads = v.unflatten(-1, (3, 2))
    dwc = torch.stack([attention.dwc(heads[..., i, :]) for i in range(3)], dim=-2).flatten(-2)
    torch.testing.assert_close(depthwise(v, *attention.local_kernel()), dwc + attention.get_v(v))


@pytest.mark.parametrize('direction', ['vertical', 'horizontal'])
def test_padding_is_left_out_exactly(direction):
    """A stripe wider than the map is attention over the map alone, its table cut to the map."""
    wide = randomize(FocusedStripeAttention(
        16, 4, direction=direction, stripe_width=7, native_size=(3, 3)))
    full = FocusedStripeAttention(16, 4, direction='full', native_size=(3, 3))
    state = wide.state_dict()
    # Four positions of padding: two before the map, two after it.
    table = state['positional_encoding'].unflatten(1, wide.native_window)
    table = table[:, :, 2:5] if direction == 'vertical' else table[:, 2:5]
    full.load_state_dict(state | {'positional_encoding': table.flatten(1, 2)})
    qkv = torch.randn(2, 3, 3, 3, 16)
    torch.testing.assert_close(wide(qkv), full(qkv))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32],
                         ids=['fp16', 'bf16', 'fp32'])
@pytest.mark.parametrize('stripe_width', [3, None])
def test_large_activations_stay_finite(dtype, stripe_width):
    """Activations ×1e4: no infinity and no NaN, forward or backward, and the right values."""
    attention = FocusedLinearAttention(32, 4, native_size=(8, 8), stripe_width=stripe_width)
    x = (torch.randn(2, 23, 31, 32) * 1e4).requires_grad_()
    exact = attention.double()(x.double()).detach()
    attention.float()
    with torch.autocast('cpu', dtype=dtype, enabled=dtype != torch.float32):
        out = attention(x)
    grads = torch.autograd.grad(out.float().mean(), [x, *attention.parameters()])
    assert out.isfinite().all() and all(g.isfinite().all() for g in grads)
    tolerance = {torch.float16: 3e-3, torch.bfloat16: 3e-2, torch.float32: 1e-5}[dtype]
    assert (out - exact).norm() < tolerance * exact.norm()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=['fp16', 'bf16'])
def test_backbone_stays_finite_on_large_activations(dtype):
    model = FLattenCSWin(ARCH, **TestFLattenCSWin.kwargs)
    with torch.no_grad():
        # What the attention sees: normalised, then scaled.
        for name, p in model.named_parameters():
            if name.endswith('norm1.weight') and '.' in name[:-len('norm1.weight')]:
                p.fill_(1e4)
    x = torch.randn(1, 3, 65, 97) * 1e4
    with torch.autocast('cpu', dtype=dtype):
        outs = model(x)
    sum(out.float().square().mean() for out in outs).backward()
    assert all(out.isfinite().all() for out in outs)
    assert all(p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize('value', [0., -5., 1e6, -1e6])
def test_tokens_without_direction_stay_finite(value):
    """No positive channel at all, or values whose cubes leave float32: no 0/0, no inf/inf."""
    attention = FocusedStripeAttention(8, 2, direction='full', native_size=(3, 5))
    with torch.no_grad():
        attention.scale.fill_(6.)            # pushes ε/softplus(scale) cubed towards underflow
    qkv = torch.full((1, 3, 5, 3, 8), value, requires_grad=True)
    out = attention(qkv)
    grad, = torch.autograd.grad(out.sum(), qkv)
    assert out.isfinite().all() and grad.isfinite().all()


@pytest.mark.parametrize('size', [(7, 5), (11, 13), (3, 2), (1, 1), (7, 9), (20, 5)])
def test_resized_table_is_bicubic_interpolation(size):
    table = torch.randn(1, 35, 3, dtype=torch.float64, requires_grad=True)
    image = table.unflatten(1, (7, 5)).permute(0, 3, 1, 2)
    expected = F.interpolate(image, size, mode='bicubic').permute(0, 2, 3, 1).flatten(1, 2)
    out = resize_position_grid(table, (7, 5), size)
    torch.testing.assert_close(out, expected)
    weight = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad((o * weight).sum(), table, retain_graph=True)
                                 for o in (out, expected)))


def test_table_at_its_native_size_is_the_parameter_itself():
    table = nn.Parameter(torch.randn(1, 35, 3))
    assert resize_position_grid(table, (7, 5), (7, 5)) is table


def test_table_is_resized_in_float32():
    table = torch.randn(1, 35, 3)
    exact = resize_position_grid(table, (7, 5), (11, 13))
    with torch.autocast('cpu', dtype=torch.bfloat16):
        torch.testing.assert_close(resize_position_grid(table, (7, 5), (11, 13)), exact)
    half = resize_position_grid(table.bfloat16(), (7, 5), (11, 13))
    assert half.dtype == torch.bfloat16


def test_a_table_of_another_grid_is_refused():
    with pytest.raises(ValueError, match='7x5'):
        resize_position_grid(torch.zeros(1, 36, 3), (7, 5), (3, 3))


@torch.no_grad()
def test_an_optimized_attention_takes_tables_of_every_size_and_new_weights():
    plain = randomize(FocusedLinearAttention(16, 2, native_size=(4, 4)).eval())
    fast = optimize_for_inference(copy.deepcopy(plain))

    def compare():
        for size in ((4, 4), (5, 3), (7, 6), (7, 6), (5, 3)):
            x = torch.randn(1, *size, 16)
            torch.testing.assert_close(fast(x), plain(x), rtol=1e-4, atol=1e-5)

    compare()
    for one, other in zip(plain.attns.parameters(), fast.attns.parameters(), strict=True):
        one += .5
        other += .5
    compare()


@pytest.mark.parametrize('direction', ['vertical', 'horizontal', 'full'])
def test_golden_attention(direction):
    meta, arrays, state, x = load_case(f'attn_focused_{direction}')
    attention = FocusedStripeAttention(32, 4, direction=direction, stripe_width=2,
                                       native_size=(8, 8))
    attention.load_state_dict(state)
    out = attention(x.permute(1, 2, 0, 3).unflatten(1, (8, 8))).flatten(1, 2)
    assert_outputs({'out': out}, arrays)
    assert_gradient([out], x, arrays['grad'])


@pytest.mark.parametrize('windows', ['global', 'windowed'])
def test_golden_backbone(windows, tmp_path):
    meta, arrays, state, x = load_case(f'flatten_cswin_tiny_{windows}_224')
    attn_type = meta['arch']['attn_type']
    # The official widths: those as wide as the map at 224 mean the whole map.
    widths = tuple(int(w) for w in meta['arch']['la_split_size'].split('-'))
    model = FLattenCSWin('tiny', attn_type=attn_type, linear_stripe_widths=widths)
    torch.save({'model': state}, tmp_path / 'official.pth')
    report = load_pretrained(model, tmp_path / 'official.pth')
    assert report.fraction == 1
    assert report.unused == ['head.bias', 'head.weight', 'norm.bias', 'norm.weight']
    for i in range(1, 5):
        setattr(model, f'norm{i}', nn.Identity())         # the golden maps stand before any
    for prepare in (nn.Module.eval, optimize_for_inference):
        with torch.no_grad():
            outs = list(prepare(model)(x))
        outs[0] = outs[0][:, :, ::2, ::2]
        assert_outputs({f'out{i}': out for i, out in enumerate(outs)}, arrays)


@pytest.mark.parametrize('size', [(128, 128), (64, 160), (224, 96)])
def test_windows_of_the_whole_map_stay_so_at_every_size(size):
    """One change at a corner reaches every position of the first stage."""
    model = FLattenCSWin(ARCH, img_size=64).eval()
    x = torch.randn(1, 3, *size)
    changed = x.clone()
    changed[..., -8:, -8:] += 1
    with torch.no_grad():
        before, after = model(x)[0], model(changed)[0]
    assert (before - after).abs().amax(1).min() > 0


@pytest.mark.parametrize('attn_type, expected', [
    ('LLSS', [['L'], ['L', 'L'], ['S', 'S', 'S'], ['S']]),
    ('SSLL', [['S'], ['S', 'S'], ['L', 'L', 'L'], ['L']]),
    ('MMMS2', [['L'], ['L', 'L'], ['L', 'L', 'S'], ['S']]),
    ('MLMM0', [['S'], ['L', 'L'], ['S', 'S', 'S'], ['S']]),
])
def test_letters_choose_the_attention(attn_type, expected):
    model = FLattenCSWin(ARCH | dict(depths=(1, 2, 3, 1)), attn_type=attn_type, img_size=32)
    kinds = {FocusedLinearAttention: 'L', CrossShapedWindowAttention: 'S'}
    assert [[kinds[type(block.attn)] for block in getattr(model, f'stage{i}')]
            for i in range(1, 5)] == expected


@pytest.mark.parametrize('kwargs, message', [
    (dict(attn_type='LLS'), 'attn_type'),
    (dict(attn_type='LLSX'), 'attn_type'),
    (dict(attn_type='MLSS'), 'attn_type'),
    (dict(attn_type='LLSS3'), 'attn_type'),
    (dict(linear_stripe_widths='56-28-14-7'), 'linear_stripe_widths'),
    (dict(linear_stripe_widths=(1, 2, 7)), 'linear_stripe_widths'),
    (dict(linear_stripe_widths=(0, 2, 7, 7)), 'linear_stripe_widths'),
    (dict(img_size=2), 'img_size'),
    (dict(img_size=(224, 224, 3)), 'img_size'),
])
def test_bad_options_are_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        FLattenCSWin(ARCH, **kwargs)


@pytest.mark.parametrize('widths', [(None,) * 4, (1, 2, 2, None)], ids=['global', 'stripes'])
def test_checkpoint_of_another_image_size_is_resized(widths, tmp_path):
    kwargs = dict(attn_type='LLLL', linear_stripe_widths=widths)
    source = randomize(FLattenCSWin(ARCH, img_size=96, **kwargs)).eval()
    torch.save(source.state_dict(), tmp_path / 'source.pth')
    model = FLattenCSWin(ARCH, img_size=160, **kwargs).eval()
    report = load_pretrained(model, tmp_path / 'source.pth')
    assert report.fraction == 1 and report.adapted
    assert all(name.endswith('positional_encoding') for name in report.adapted)
    # At the new native size the stored tables are what the old model resizes to on its way.
    x = torch.randn(1, 3, 160, 160)
    with torch.no_grad():
        for a, b in zip(source(x), model(x), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_checkpoint_of_other_stripes_does_not_fit(tmp_path):
    source = FLattenCSWin(ARCH, attn_type='LLLL', img_size=224)
    torch.save(source.state_dict(), tmp_path / 'source.pth')
    model = FLattenCSWin(ARCH, attn_type='LLLL', linear_stripe_widths=(1, 2, 7, 7))
    with pytest.raises(UserError, match='does not fit'):
        load_pretrained(model, tmp_path / 'source.pth')


@pytest.mark.parametrize('arch, millions', [('tiny', 21), ('small', 35), ('base', 75)])
def test_parameters_are_the_published_ones(arch, millions):
    """Published counts hold the classifier and one final norm, not four."""
    with torch.device('meta'):
        model = FLattenCSWin(arch)
    width = model.out_channels[-1]
    count = sum(p.numel() for p in model.parameters())
    count += 1000 * width + 1000 - 2 * sum(model.out_channels[:3])
    assert count / 1e6 == pytest.approx(millions, abs=.75)
