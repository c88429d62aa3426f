"""CSWin: attention against its equation and the official code, and the backbone."""
import pytest
import torch

from tests.backbone_suite import BackboneSuite
from tests.comparing import outputs_and_gradients
from tests.goldens import assert_gradient, assert_optimized_outputs, assert_outputs, load_case
from visattn_dense.attention import CrossShapedWindowAttention, StripeAttention
from visattn_dense.attention.naive import as_naive
from visattn_dense.backbones import CSWin
from visattn_dense.checkpoints import load_pretrained


class TestCSWin(BackboneSuite):
    backbone = CSWin
    arch = dict(embed_dim=16, depths=(1, 1, 2, 1), num_heads=(2, 2, 4, 4),
                stripe_widths=(1, 2, 7, 7))


@pytest.mark.parametrize('size', [(1, 1), (5, 3), (7, 13), (11, 17), (2, 31)])
@pytest.mark.parametrize('stripe_width', [1, 2, 7, None])
@pytest.mark.parametrize('mask_padding', [False, True])
def test_attention_is_its_equation(size, stripe_width, mask_padding):
    kwargs = dict(stripe_width=stripe_width, mask_padding=mask_padding)
    fast = CrossShapedWindowAttention(24, 6, **kwargs).double()
    naive = as_naive(CrossShapedWindowAttention(24, 6, **kwargs).double())
    naive.load_state_dict(fast.state_dict())
    x = torch.randn(2, *size, 24, dtype=torch.float64)
    for a, b in zip(outputs_and_gradients(fast, x), outputs_and_gradients(naive, x), strict=True):
        torch.testing.assert_close(a, b)


def test_one_stripe_by_hand():
    """Two positions, one column: logits 0 and ln 3, so the weights are 1/4 and 3/4."""
    attn = StripeAttention(1, 1, direction='vertical', stripe_width=1, scale=1.)
    with torch.no_grad():
        attn.get_v.weight.zero_()
        attn.get_v.weight[0, 0, 1, 1] = 10.      # LePE: ten times the value itself
        attn.get_v.bias.fill_(.5)
    q, k, v = [1., 1.], [0., torch.tensor(3.).log()], [4., 8.]
    qkv = torch.tensor([q, k, v]).T.reshape(1, 2, 1, 3, 1)
    out = attn(qkv).flatten()
    torch.testing.assert_close(out, torch.tensor([7 + 40.5, 7 + 80.5]))


class Doubled(StripeAttention):
    def forward(self, qkv):
        return 2 * super().forward(qkv)


def test_a_branch_can_be_watched_and_changed():
    """The two directions are one operator. A hook on a branch, or another forward, still counts."""
    attn = CrossShapedWindowAttention(8, 2, stripe_width=2)
    attn.proj = torch.nn.Identity()
    x = torch.randn(1, 3, 4, 8)
    plain, seen = attn(x), []
    attn.attns[0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    torch.testing.assert_close(attn(x), plain)
    torch.testing.assert_close(seen[0], plain[..., :4])
    attn.attns[1].__class__ = Doubled
    torch.testing.assert_close(attn(x)[..., 4:], 2 * plain[..., 4:])


def test_masked_padding_equals_attention_on_the_map_alone():
    """A stripe wider than the map, padding masked, is attention over the unpadded map."""
    wide = StripeAttention(16, 4, direction='vertical', stripe_width=7, mask_padding=True)
    full = StripeAttention(16, 4, direction='full')
    full.load_state_dict(wide.state_dict())
    qkv = torch.randn(2, 5, 3, 3, 16)
    torch.testing.assert_close(wide(qkv), full(qkv))


def test_unmasked_padding_counts_as_logit_zero():
    wide = StripeAttention(4, 1, direction='vertical', stripe_width=2)
    with torch.no_grad():
        for p in wide.get_v.parameters():
            p.zero_()
    qkv = torch.randn(1, 1, 1, 3, 4)
    q, k, v = qkv.flatten(0, 2).unbind(1)
    logit = ((q * k).sum() / 2).exp()
    torch.testing.assert_close(wide(qkv).flatten(), (logit / (logit + 1) * v).flatten())


@pytest.mark.parametrize('kwargs, message', [
    (dict(dim=10, num_heads=4), 'num_heads'),
    (dict(dim=12, num_heads=3), 'num_heads'),
])
def test_bad_dimensions_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        CrossShapedWindowAttention(**kwargs)


def test_attention_needs_no_openmmlab():
    import subprocess
    import sys
    code = ('import sys, visattn_dense.attention, visattn_dense.backbones; '
            'bad = [m for m in sys.modules if m.split(".")[0] in ("mmengine", "mmcv", "mmseg")]; '
            'sys.exit(str(bad) if bad else 0)')
    subprocess.run([sys.executable, '-c', code], check=True)


def test_no_compiler_is_imported_at_the_start():
    """torch's compiler and Triton take two seconds and 150 MB: only who compiles pays."""
    import subprocess
    import sys
    code = ('import sys, visattn_dense.backbones, visattn_dense.predictor; '
            'bad = {"torch._dynamo", "torch._inductor", "triton"} & set(sys.modules); '
            'sys.exit(str(bad) if bad else 0)')
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.parametrize('case, direction', [
    ('attn_cswin_vertical_padded', 'vertical'),
    ('attn_cswin_horizontal_padded', 'horizontal'),
    ('attn_cswin_full', 'full'),
])
def test_golden_attention(case, direction):
    meta, arrays, state, x = load_case(case)
    attn = StripeAttention(32, 4, direction=direction, stripe_width=3)
    attn.load_state_dict(state)
    out = attn(x.permute(0, 3, 4, 1, 2)).flatten(1, 2)
    assert_outputs({'out': out}, arrays)
    assert_gradient([out], x, arrays['grad'])


@pytest.mark.parametrize('case', ['cswin_micro_96x132', 'cswin_tiny_128x160'])
def test_golden_backbone(case, tmp_path):
    meta, arrays, state, x = load_case(case)
    arch = meta['arch']
    model = CSWin(dict(embed_dim=arch['embed_dim'], depths=arch['depth'],
                       num_heads=arch['num_heads'], stripe_widths=arch['split_size']))
    torch.save({'state_dict_ema': state, 'epoch': 300}, tmp_path / 'official.pth')
    report = load_pretrained(model, tmp_path / 'official.pth')
    assert report.fraction == 1
    assert report.unused == ['head.bias', 'head.weight', 'norm.bias', 'norm.weight']
    outs = model.eval()(x)
    assert_outputs({f'out{i}': out for i, out in enumerate(outs)}, arrays)
    assert_gradient(list(outs), x, arrays['grad'])
    assert_optimized_outputs(model, x, arrays)


@pytest.mark.parametrize('arch, millions', [('tiny', 23), ('small', 35), ('base', 78),
                                            ('large', 173)])
def test_parameters_are_the_published_ones(arch, millions):
    """Published counts (paper, Table 2) hold the classifier and one final norm, not four."""
    with torch.device('meta'):
        model = CSWin(arch)
    width = model.out_channels[-1]
    count = sum(p.numel() for p in model.parameters())
    count += 1000 * width + 1000 - 2 * sum(model.out_channels[:3])
    assert count / 1e6 == pytest.approx(millions, abs=.75)
