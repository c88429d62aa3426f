"""T2T-ViT: its token attentions against their equations and the official code, and the backbone."""
import pytest
import torch
from torch import nn

from tests.backbone_suite import BackboneSuite
from tests.goldens import assert_gradient, assert_outputs, load_case
from visattn_dense.attention import TokenPerformer, TokenTransformer
from visattn_dense.attention.naive import as_naive
from visattn_dense.attention.tokens import soft_split
from visattn_dense.backbones import T2TViT
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError
from visattn_dense.layers import optimize_for_inference, sinusoid_table
from visattn_dense.ops.linear_attention.torch_form import performer_features

SMALL = dict(embed_dim=32, depth=5, num_heads=2, mlp_ratio=2., tokens='performer', se=False)


class TestT2TViT(BackboneSuite):
    backbone = T2TViT
    arch = SMALL


class TestT2TViTTransformerTokenLevels(BackboneSuite):
    backbone = T2TViT
    arch = dict(SMALL, tokens='transformer', se=True)
    kwargs = dict(fine_levels='tokens', img_size=96)

    @pytest.mark.parametrize('out_indices', [(2,), (3,), (1, 3), (3, 0)])
    def test_out_indices_choose_stages(self, out_indices):
        super().test_out_indices_choose_stages(out_indices)

    def test_levels_of_tokens_alone_are_refused(self):
        with pytest.raises(UserError, match='add 2 or 3'):
            self.build(out_indices=(0, 1))


@pytest.mark.parametrize('kind', [TokenPerformer, TokenTransformer])
@pytest.mark.parametrize('size', [(1, 1), (5, 3), (13, 7)])
def test_attention_is_its_equation(kind, size):
    fast, naive = kind(19, 8).double().eval(), as_naive(kind(19, 8).double()).eval()
    naive.load_state_dict(fast.state_dict())
    results = []
    x = torch.randn(2, *size, 19, dtype=torch.float64)
    weight = torch.randn(2, *size, 8, dtype=torch.float64)
    for module in (fast, naive):
        image = x.clone().requires_grad_()
        out = module(image)
        results.append([out, *torch.autograd.grad((out * weight).sum(),
                                                  [image, *module.parameters()])])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_performer_features_by_hand():
    """One feature w = (1, 0): φ(t) = exp(t₀ − ‖t‖²/2); equal keys give the mean of the values."""
    attn = TokenPerformer(4, 2, kernel_ratio=.5)
    attn.w.copy_(torch.tensor([[1., 0.]]))
    torch.testing.assert_close(performer_features(torch.tensor([[[2., 1.]]]), attn.w),
                               torch.tensor([[[-.5]]]).exp())
    k, q = torch.ones(1, 3, 2), torch.randn(1, 3, 2)
    v = torch.tensor([[[3., 0.], [6., 3.], [9., 0.]]])
    torch.testing.assert_close(attn.attend(k, q, v), torch.tensor([6., 1.]).expand(1, 3, 2))


def test_the_random_matrix_is_orthogonal_and_not_trained():
    attn = TokenPerformer(10, 64)
    torch.testing.assert_close(attn.w @ attn.w.T, 32 * torch.eye(32), atol=1e-4, rtol=0)
    assert 'w' not in dict(attn.named_parameters()) and 'w' in attn.state_dict()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_huge_activations_stay_finite(dtype):
    attn = TokenPerformer(16, 8)
    x = (torch.randn(1, 9, 9, 16) * 1e4).requires_grad_()
    with torch.autocast('cpu', dtype=dtype):
        out = attn(x)
        assert out.isfinite().all()
    k = q = v = torch.randn(1, 9, 8) * 1e4
    assert attn.attend(k, q, v).isfinite().all()


def test_soft_split_takes_patches():
    x = torch.arange(2 * 5 * 7.).view(1, 2, 5, 7)
    patches = soft_split(x, 3, 2, 1)
    assert patches.shape == (1, 3, 4, 18)
    torch.testing.assert_close(patches[0, 1, 1].view(2, 3, 3), x[0, :, 1:4, 1:4])


def test_sinusoid_table_values():
    table = sinusoid_table(3, 4)[0]
    torch.testing.assert_close(table[0], torch.tensor([0., 1., 0., 1.]))
    expected = torch.tensor([2., 2., .02, .02])
    torch.testing.assert_close(table[2], torch.stack(
        [expected[0].sin(), expected[1].cos(), expected[2].sin(), expected[3].cos()]))


def test_the_position_table_is_its_own_at_the_native_size_and_keeps_the_class_token():
    model = T2TViT(SMALL)
    table = model.pos_embed
    assert model.position_table(table, (14, 14), (14, 14)) is table
    resized = model.position_table(table, (14, 14), (5, 9))
    assert resized.shape == (1, 46, 32)
    torch.testing.assert_close(resized[:, 0], table[:, 0])


def test_released_weights_bring_their_attention_scale(tmp_path):
    source = T2TViT(SMALL)
    official = {k: v for k, v in source.state_dict().items() if k != 'qk_scale'}
    torch.save({'state_dict_ema': official}, tmp_path / 'official.pth')
    torch.save(T2TViT(SMALL, qk_scale=.123).state_dict(), tmp_path / 'ours.pth')

    def scale_after(file: str, **kwargs) -> float:
        model = T2TViT(SMALL, **kwargs)
        load_pretrained(model, tmp_path / file)
        scales = {block.attn.scale for block in model.blocks}
        assert len(scales) == 1 and float(model.qk_scale) == pytest.approx(*scales)
        return scales.pop()

    assert T2TViT(SMALL).blocks[0].attn.scale == 16 ** -.5
    assert scale_after('official.pth') == 32 ** -.5
    assert scale_after('official.pth', qk_scale=.5) == .5
    # What was saved here says itself what it was trained with.
    assert scale_after('ours.pth') == pytest.approx(.123)
    assert scale_after('ours.pth', qk_scale=.5) == pytest.approx(.123)


def test_a_table_of_another_training_size_is_resized(tmp_path):
    torch.save(T2TViT(SMALL, img_size=384).state_dict(), tmp_path / 'x.pth')
    report = load_pretrained(T2TViT(SMALL), tmp_path / 'x.pth')
    assert list(report.adapted) == ['pos_embed'] and report.fraction == 1


@pytest.mark.parametrize('tokens', ['performer', 'transformer'])
@pytest.mark.parametrize('channels', [1, 4, 6])
def test_other_image_channels_are_adapted(tokens, channels, tmp_path):
    source = T2TViT(dict(SMALL, tokens=tokens))
    torch.save(source.state_dict(), tmp_path / 'x.pth')
    model = T2TViT(dict(SMALL, tokens=tokens), in_channels=channels)
    report = load_pretrained(model, tmp_path / 'x.pth')
    assert report.fraction == 1 and len(report.adapted) == 3
    if channels == 6:
        # The same picture twice: tokens normalised over twice the channels, products of half size.
        x = torch.randn(1, 3, 64, 64)
        for a, b in zip(source.eval()(x), model.eval()(x.repeat(1, 2, 1, 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('change, message', [
    (dict(fine_levels='coarse'), 'fine_levels'),
    (dict(arch=dict(SMALL, num_heads=5)), 'num_heads'),
])
def test_bad_options_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        T2TViT(**{'arch': SMALL, **change})


def test_unknown_tokens_are_refused():
    with pytest.raises(ValueError, match='performer or transformer'):
        T2TViT(dict(SMALL, tokens='convolution'))


@pytest.mark.parametrize('case, kind', [('attn_token_performer', TokenPerformer),
                                        ('attn_token_transformer', TokenTransformer)])
def test_golden_attention(case, kind):
    meta, arrays, state, x = load_case(case)
    attn = kind(147, 64).eval()
    attn.load_state_dict({k.replace('mlp.0.', 'mlp.fc1.').replace('mlp.2.', 'mlp.fc2.'): v
                          for k, v in state.items()})
    out = attn(x)
    assert_outputs({'out': out}, arrays)
    assert_gradient([out], x, arrays['grad'])


@pytest.mark.parametrize('case, arch, qk_scale', [('t2t_vit_7', '7', 64 ** -.5),
                                                  ('t2t_vit_t_14', 't_14', None)])
def test_golden_backbone(case, arch, qk_scale, tmp_path):
    """The official code has no pyramid: its maps and tokens are compared inside ours."""
    meta, arrays, state, x = load_case(case)
    model = T2TViT(arch, qk_scale=qk_scale).eval()
    torch.save({'state_dict_ema': {f'module.{k}': v for k, v in state.items()}},
               tmp_path / 'official.pth')
    report = load_pretrained(model, tmp_path / 'official.pth', min_matched=.98)
    # The goldens' table is the architecture's own and not in their state.
    assert report.missing == ['pos_embed'] and report.unused == ['head.bias', 'head.weight']
    seen = {}
    middle = len(model.blocks) // 2 - 1
    model.blocks[middle].register_forward_hook(lambda m, i, o: seen.update(mid=o))
    model.blocks[-1].register_forward_hook(lambda m, i, o: seen.update(last=o))
    for prepare in (nn.Module.eval, optimize_for_inference):
        with torch.no_grad():
            prepare(model)(x)
            fine, second, _ = model.tokens_to_token(x, model.run_block)
            assert_outputs({'tokens4': fine.permute(0, 3, 1, 2)[:, :, ::2, ::2],
                            'tokens8': second.permute(0, 3, 1, 2), 'mid': seen['mid'],
                            'final': model.norm(seen['last'])}, arrays)


@pytest.mark.parametrize('arch, millions', [
    ('7', 4.3), ('10', 5.9), ('12', 6.9), ('14', 21.5), ('19', 39.2), ('24', 64.1), ('t_14', 21.5),
    ('t_19', 39.2), ('t_24', 64.1)])
def test_parameters_are_the_published_ones(arch, millions):
    """Published counts (paper, Tables 1 and 2) hold the classifier, the position table and the
    performer's matrices, which are buffers here, and no pyramid."""
    with torch.device('meta'):
        model = T2TViT(arch)
    dim = model.out_channels[-1]
    count = sum(t.numel() for name, t in model.state_dict().items()
                if not name.startswith('levels') and name != 'qk_scale')
    assert (count + 1000 * dim + 1000) / 1e6 == pytest.approx(millions, abs=.15)
