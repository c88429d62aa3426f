"""T2T-ViT: its token attentions against their equations and the official code, and the backbone."""
import copy

import pytest
import torch
from torch import nn

from tests.backbone_suite import BackboneSuite
from tests.goldens import assert_gradient, assert_outputs, load_case
from visattn_dense.attention import (
    ConvolutionTokens,
    GhostMlp,
    GhostSelfAttention,
    SelfAttention,
    SESelfAttention,
    SqueezeExcitation,
    TokenPerformer,
    TokenTransformer,
)
from visattn_dense.attention.naive import as_naive
from visattn_dense.backbones import T2TViT
from visattn_dense.backbones.t2t_vit_dense import DenseBlock, Transition
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError
from visattn_dense.layers import SoftSplit, TransformerBlock, optimize_for_inference, sinusoid_table
from visattn_dense.layers.packed import NativeSplitLinear
from visattn_dense.ops import native
from visattn_dense.ops.linear_attention.torch_form import performer_features

SMALL = dict(embed_dim=32, depth=5, num_heads=2, mlp_ratio=2., tokens='performer', se=False)
# Blocks of the widths 16 | 16, 32 | 24 | 20; after a transition not a multiple of the growth.
DENSE = dict(embed_dim=16, depth=(1, 2, 1, 1), num_heads=2, mlp_ratio=2., tokens='performer',
             growth=16)


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


class TestT2TViTGhostConvolution(BackboneSuite):
    backbone = T2TViT
    arch = dict(embed_dim=32, depth=4, num_heads=2, mlp_ratio=3., tokens='convolution', ghost=True)


class TestT2TViTDense(BackboneSuite):
    backbone = T2TViT
    arch = DENSE


@pytest.mark.parametrize('kind, dims', [(TokenPerformer, (19, 8)), (TokenTransformer, (19, 8)),
                                        (GhostSelfAttention, (12, 3)), (SESelfAttention, (32, 4))])
@pytest.mark.parametrize('size', [(1, 1), (5, 3), (13, 7)])
def test_attention_is_its_equation(kind, dims, size):
    fast, naive = kind(*dims).double().eval(), as_naive(kind(*dims).double()).eval()
    naive.load_state_dict(fast.state_dict())
    results = []
    x = torch.randn(2, *size, dims[0], dtype=torch.float64)
    weight = torch.randn_like(fast(x))
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


@pytest.mark.parametrize('kind, linear', [(TokenPerformer, 'kqv'), (TokenTransformer, 'attn.qkv')])
@pytest.mark.parametrize('size', [(7, 5), (12, 9)])
def test_split_norm_and_projection_become_one_layer(kind, linear, size):
    attn = kind(4 * 3**2, 8, split=SoftSplit(3, 2, 1)).eval()
    for parameter in attn.parameters():
        nn.init.uniform_(parameter, -.5, .5)
    plain, x = copy.deepcopy(attn), torch.randn(2, 4, *size)
    with torch.no_grad():
        torch.testing.assert_close(optimize_for_inference(attn)(x), plain(x), rtol=1e-4, atol=1e-5)
        assert attn(x[:0]).shape == plain(x[:0]).shape
    fused = type(attn.get_submodule(linear)) is NativeSplitLinear
    assert fused == native.available()
    assert [type(m) is nn.Identity for m in (attn.split, attn.norm1)] == [fused] * 2


def test_soft_split_takes_patches():
    x = torch.arange(2 * 5 * 7.).view(1, 2, 5, 7)
    patches = SoftSplit(3, 2, 1)(x)
    assert patches.shape == (1, 3, 4, 18)
    torch.testing.assert_close(patches[0, 1, 1].view(2, 3, 3), x[0, :, 1:4, 1:4])


def test_convolution_tokens_are_linear_layers_of_the_soft_splits():
    stem = ConvolutionTokens(24, in_channels=4)
    image = torch.randn(2, 4, 37, 50)
    maps = stem(image, None)
    assert [tuple(m.shape) for m in maps] == [(2, 9, 12, 64), (2, 5, 6, 64), (2, 3, 3, 24)]
    x = image
    for conv, split, out in zip((stem.soft_split0, stem.soft_split1, stem.project),
                                ((7, 4, 2), (3, 2, 1), (3, 2, 1)), maps, strict=True):
        linear = SoftSplit(*split)(x) @ conv.weight.flatten(1).T + conv.bias
        torch.testing.assert_close(out, linear, rtol=1e-4, atol=1e-4)
        x = linear.permute(0, 3, 1, 2)


def test_squeeze_excitation_of_a_map_by_hand():
    se = SqueezeExcitation(1, reduction=1)
    with torch.no_grad():
        se.fc[0].weight.fill_(1.)
        se.fc[2].weight.fill_(2.)
        # The mean of the positions is 3.
        out = se(torch.tensor([1., 5., 2., 4.]).view(1, 2, 2, 1)).flatten()
    torch.testing.assert_close(out, torch.tensor([1., 5., 2., 4.]) * torch.tensor(6.).sigmoid())


def test_ghost_attention_by_hand():
    """Two heads of one channel: the second head's q, k and v are 3, ½ and −2 times the first's."""
    attn = GhostSelfAttention(2, 2, scale=1.)
    with torch.no_grad():
        for layer in (attn.q, attn.k, attn.v):
            layer.weight.copy_(torch.tensor([[1., 0.]]))
        attn.cheap_operation_q.weight.fill_(3.)
        attn.cheap_operation_k.weight.fill_(.5)
        attn.cheap_operation_v.weight.fill_(-2.)
        attn.proj.weight.copy_(torch.eye(2))
        attn.proj.bias.zero_()
        # Token 0 has the logits 0 with both tokens: the mean of v. Token 1: 0 and 1, 0 and 1.5.
        out = attn(torch.tensor([[[0., 9.], [1., 9.]]]))
    first, second = torch.tensor(1.).sigmoid(), torch.tensor(1.5).sigmoid()
    torch.testing.assert_close(out, torch.tensor([[[.5, -1.], [first, -2 * second]]]))


def test_ghost_mlp_by_hand():
    """fc1 doubles; fc2 is (1, 10, 100) on the features and their two copies."""
    mlp = GhostMlp(1, 3)
    with torch.no_grad():
        mlp.fc1.weight.fill_(2.)
        mlp.fc1.bias.zero_()
        mlp.cheap_operation2.weight.fill_(-1.)
        mlp.cheap_operation3.weight.fill_(3.)
        mlp.fc2.weight.copy_(torch.tensor([[1., 10., 100.]]))
        mlp.fc2.bias.fill_(.5)
        out = mlp(torch.tensor([[.7]]))
    gelu = nn.functional.gelu
    h = gelu(torch.tensor(1.4))
    torch.testing.assert_close(out, (.5 + h + 10 * gelu(-h) + 100 * gelu(3 * h)).view(1, 1))


@pytest.mark.parametrize('build', [lambda: GhostSelfAttention(9, 3),
                                   lambda: GhostSelfAttention(10, 4), lambda: GhostMlp(8, 16)])
def test_ghosts_refuse_widths_that_do_not_fit(build):
    with pytest.raises(ValueError, match='got (9|10|16)'):
        build()


def test_dense_blocks_append_to_what_they_take():
    model = T2TViT(DENSE).eval()
    assert model.out_channels == (32, 48, 40, 36) and model.level_depths == (1, 4, 6, 8)
    kinds = ''.join('t' if isinstance(block, Transition) else 'b' for block in model.blocks)
    assert kinds == 'btbbtbtb'
    with torch.no_grad():
        for block in model.blocks:
            x = torch.randn(2, 5, (block.linear if isinstance(block, Transition)
                                   else block.dense_linear).in_features)
            out = block(x)
            if isinstance(block, Transition):
                assert out.shape == (2, 5, x.shape[-1] // 2)
            else:
                assert torch.equal(out[..., :x.shape[-1]], x) and out.shape[-1] == x.shape[-1] + 16


def test_drop_path_grows_over_the_dense_blocks_and_passes_transitions():
    model = T2TViT(DENSE, drop_path_rate=.4)
    rates = [block.drop_path.drop_prob for block in model.blocks
             if not isinstance(block, Transition)]
    assert rates == pytest.approx([0., .1, .2, .3, .4])


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


@pytest.mark.parametrize('own', [False, True], ids=['of the authors', 'of this project'])
def test_each_dense_block_keeps_the_scale_of_its_head(own, tmp_path):
    """The official code has no other scale for a file of T2T-ViT-dense."""
    torch.manual_seed(0)
    source = T2TViT(DENSE).eval()
    torch.save({name: tensor for name, tensor in source.state_dict().items()
                if own or name != 'qk_scale'}, tmp_path / 'x.pth')
    model, given = T2TViT(DENSE).eval(), T2TViT(DENSE, qk_scale=.3).eval()
    assert load_pretrained(model, tmp_path / 'x.pth').missing == []
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = source(x)
        torch.testing.assert_close(model(x), wanted)
        # By hand, block by block.
        for block in model.blocks:
            if isinstance(block, TransformerBlock):
                block.attn.scale = (block.norm1.weight.numel() // 2) ** -.5
        torch.testing.assert_close(model(x), wanted)
        load_pretrained(given, tmp_path / 'x.pth')
        same = all(torch.allclose(a, b) for a, b in zip(given(x), wanted, strict=True))
    # A given scale holds against a file that says nothing, and yields to a file that does.
    assert same == own


def test_a_table_of_another_training_size_is_resized(tmp_path):
    torch.save(T2TViT(SMALL, img_size=384).state_dict(), tmp_path / 'x.pth')
    report = load_pretrained(T2TViT(SMALL), tmp_path / 'x.pth')
    assert list(report.adapted) == ['pos_embed'] and report.fraction == 1


@pytest.mark.parametrize('tokens, adapted', [('performer', 3), ('transformer', 3),
                                             ('convolution', 1)])
@pytest.mark.parametrize('channels', [1, 4, 6])
def test_other_image_channels_are_adapted(tokens, adapted, channels, tmp_path):
    source = T2TViT(dict(SMALL, tokens=tokens))
    torch.save(source.state_dict(), tmp_path / 'x.pth')
    model = T2TViT(dict(SMALL, tokens=tokens), in_channels=channels)
    report = load_pretrained(model, tmp_path / 'x.pth')
    assert report.fraction == 1 and len(report.adapted) == adapted
    if channels == 6:
        # The same picture twice: tokens normalised over twice the channels, products of half size.
        # In float64: the sums run in another order, and the layers enlarge the rounding.
        source, model = source.double().eval(), model.double().eval()
        x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
        for a, b in zip(source(x), model(x.repeat(1, 2, 1, 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('change, message', [
    (dict(fine_levels='coarse'), 'fine_levels'),
    (dict(img_size=15), 'at least 16; got 15'), (dict(img_size=(224, 224)), 'square'),
    (dict(arch=dict(SMALL, num_heads=5)), 'num_heads 5 does not divide embed_dim 32'),
    (dict(arch=dict(SMALL, tokens='pooling')), "'convolution', got 'pooling'"),
    (dict(arch=dict(SMALL, mlp_ratio=3., se=True, ghost=True)), 'got se and ghost'),
    (dict(arch=dict(SMALL, ghost=True)), 'mlp_ratio is 3'),
    (dict(arch=dict(SMALL, depth=0)), 'got 0'),
    (dict(arch=dict(SMALL, embed_dim=33, num_heads=3, mlp_ratio=3., ghost=True)), 'even'),
    (dict(arch=dict(SMALL, depth=(1, 2, 1, 1))), 'one number of blocks'),
    (dict(arch=dict(DENSE, depth=5)), 'four stages'),
    (dict(arch=dict(DENSE, depth=(1, 2, 1))), 'four stages'),
    (dict(arch=dict(DENSE, depth=(1, 2, 0, 1))), 'at least 1'),
    (dict(arch=dict(DENSE, depth=(1, 2, 1, 1.5))), 'at least 1'),
    (dict(arch=dict(DENSE, growth=-16)), 'at least 1'),
    (dict(arch=dict(DENSE, growth=17)), 'width 33 of a block'),
])
def test_bad_options_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        T2TViT(**{'arch': SMALL, **change})


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


def test_golden_ghost_block():
    _, arrays, state, x = load_case('attn_ghost')
    block = TransformerBlock(48, GhostSelfAttention(48, 4), mlp_ratio=3., mlp_layer=GhostMlp).eval()
    block.load_state_dict(state)
    out = block(x)
    assert_outputs({'out': out}, arrays, tolerance=1e-6)
    assert_gradient([out], x, arrays['grad'], tolerance=1e-6)
    with torch.no_grad():
        assert_outputs({'out': optimize_for_inference(block)(x)}, arrays)


def test_golden_dense_blocks():
    """Two dense blocks, a transition and a block of the next stage."""
    _, arrays, state, x = load_case('attn_dense_blocks')
    blocks = nn.Sequential(*(
        DenseBlock(dim, SelfAttention(dim, 4), growth=16, mlp_ratio=2.) for dim in (32, 48, 32)))
    blocks.insert(2, Transition(64, 32))
    blocks.eval().load_state_dict(state)
    out = blocks(x)
    assert_outputs({'out': out}, arrays, tolerance=1e-6)
    assert_gradient([out], x, arrays['grad'], tolerance=1e-6)


def test_golden_dense_backbone(tmp_path):
    """The output of each official stage, before its transition, is a level before its upsampling.
    """
    _, arrays, state, x = load_case('t2t_vit_dense')
    model = T2TViT('dense').eval()
    torch.save({'state_dict_ema': {f'module.{k}': v for k, v in state.items()}},
               tmp_path / 'official.pth')
    report = load_pretrained(model, tmp_path / 'official.pth', min_matched=.98)
    assert report.missing == ['pos_embed'] and report.unused == ['head.bias', 'head.weight']
    seen = {}
    for i, depth in enumerate(model.level_depths):
        model.blocks[depth - 1].register_forward_hook(
            lambda m, _, out, i=i: seen.update({f'stage{i}': out}))
    for prepare in (nn.Module.eval, optimize_for_inference):
        with torch.no_grad():
            outs = prepare(model)(x)
            fine, second, _ = model.tokens_to_token(x, model.run_block)
            assert len(seen) == 4
            assert_outputs({'tokens4': fine.permute(0, 3, 1, 2)[:, :, ::2, ::2],
                            'tokens8': second.permute(0, 3, 1, 2),
                            'final': model.norm(seen['stage3']), **seen}, arrays)
        assert [tuple(out.shape[1:]) for out in outs] == [
            (320, 56, 56), (544, 28, 28), (656, 14, 14), (584, 7, 7)]


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
    ('t_19', 39.2), ('t_24', 64.1), ('16_ghost', 16.3), ('dense', 23.6)])
def test_parameters_are_the_published_ones(arch, millions):
    """Published counts (paper, Tables 1 and 2; of ghost and dense: counts of the official models)
    hold the classifier, the position table and the performer's matrices, which are buffers here,
    and no pyramid."""
    with torch.device('meta'):
        model = T2TViT(arch)
    dim = model.out_channels[-1]
    count = sum(t.numel() for name, t in model.state_dict().items()
                if not name.startswith('levels') and name != 'qk_scale')
    assert (count + 1000 * dim + 1000) / 1e6 == pytest.approx(millions, abs=.15)
