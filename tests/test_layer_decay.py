"""The depth of every parameter of each family, and the learning rates that follow from it."""
import pytest
from mmengine.optim import build_optim_wrapper
from torch import nn

import visattn_dense.openmmlab.engine.layer_decay  # noqa: F401  (registers the constructor)
from visattn_dense.backbones import BiFormer, CSWin, EfficientViT, FLattenCSWin, T2TViT
from visattn_dense.errors import UserError

_CROSS = dict(embed_dim=16, depths=(1, 2, 3, 1), num_heads=(2, 2, 4, 8), stripe_widths=(1, 2, 2, 2))
_CROSS_LISTING = {
    'embed1': 0, 'stage1.0': 1,
    'embed2': 2, 'stage2.0': 2, 'stage2.1': 3,
    'embed3': 4, 'stage3.0': 4, 'stage3.1': 5, 'stage3.2': 6,
    'embed4': 7, 'stage4.0': 7,
    'norm1': 8, 'norm2': 8, 'norm3': 8, 'norm4': 8,
}
_BIFORMER = dict(embed_dims=(16, 16, 32, 32), depths=(1, 2, 1, 2), mlp_ratio=2.)
_BIFORMER_LISTING = {
    'downsample_layers.0': 0, 'stages.0.0': 1,
    'downsample_layers.1': 2, 'stages.1.0': 2, 'stages.1.1': 3,
    'downsample_layers.2': 4, 'stages.2.0': 4,
    'downsample_layers.3': 5, 'stages.3.0': 5, 'stages.3.1': 6,
    'extra_norms.0': 7, 'extra_norms.1': 7, 'extra_norms.2': 7, 'extra_norms.3': 7,
}
_T2T = dict(embed_dim=32, depth=4, num_heads=2, mlp_ratio=2., tokens='performer', se=False)
_T2T_LISTING = {
    'tokens_to_token': 0, 'cls_token': 0,
    'blocks.0': 1, 'blocks.1': 2, 'blocks.2': 3, 'blocks.3': 4,
    'levels.0': 5, 'levels.1': 5, 'levels.2': 5, 'norm': 5,
}
_T2T_DENSE = dict(embed_dim=16, depth=(1, 2, 1, 1), num_heads=2, mlp_ratio=2., tokens='performer',
                  growth=16)
# The arch, then each module (or parameter) and the depth of all that is in it.
LISTINGS = {
    'cswin': (lambda: CSWin(_CROSS), _CROSS_LISTING),
    'flatten_cswin': (lambda: FLattenCSWin(_CROSS, img_size=64), _CROSS_LISTING),
    'biformer': (lambda: BiFormer(dict(_BIFORMER, overlapping=True), head_dim=8, n_win=2),
                 _BIFORMER_LISTING),
    'biformer_stl': (lambda: BiFormer(dict(_BIFORMER, overlapping=False), head_dim=8, n_win=2),
                     _BIFORMER_LISTING),
    # b0's stages: a strided block, then 1, 1, 2 and 2 others.
    'efficientvit_b': (lambda: EfficientViT('b0'), {
        'stem': 0, 'stages.0.0': 1, 'stages.0.1': 2,
        'stages.1.0': 3, 'stages.1.1': 4,
        'stages.2.0': 5, 'stages.2.1': 6, 'stages.2.2': 7,
        'stages.3.0': 8, 'stages.3.1': 9, 'stages.3.2': 10}),
    't2t_vit': (lambda: T2TViT(_T2T), _T2T_LISTING),
    't2t_vit_se': (lambda: T2TViT(dict(_T2T, tokens='transformer', se=True)), _T2T_LISTING),
    # Entries 1, 4 and 6 of the blocks are transitions.
    't2t_vit_dense': (lambda: T2TViT(_T2T_DENSE), {
        'tokens_to_token': 0, 'cls_token': 0, 'blocks.0': 1,
        'blocks.1': 2, 'blocks.2': 2, 'blocks.3': 3,
        'blocks.4': 4, 'blocks.5': 4,
        'blocks.6': 5, 'blocks.7': 5,
        'levels.0': 6, 'levels.1': 6, 'levels.2': 6, 'norm': 6}),
}


@pytest.fixture(params=LISTINGS)
def listed(request) -> tuple[nn.Module, dict[str, int]]:
    build, listing = LISTINGS[request.param]
    return build(), listing


def owner(name: str, listing: dict[str, int]) -> str:
    """The one entry of a listing that a parameter belongs to."""
    (found,) = [entry for entry in listing if f'{name}.'.startswith(f'{entry}.')]
    return found


def test_every_parameter_has_the_listed_depth(listed):
    backbone, listing = listed
    depths = backbone.layer_depths()
    assert list(depths) == [name for name, _ in backbone.named_parameters()]
    assert depths == {name: listing[owner(name, listing)] for name in depths}
    assert {owner(name, listing) for name in depths} == set(listing), 'the listing has more'


class Segmentor(nn.Module):
    """A backbone, and a head beside it."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))


def wrapper(model: nn.Module, lr: float | None = 0.1, **paramwise):
    optimizer = dict(type='AdamW', weight_decay=0.05) | ({} if lr is None else dict(lr=lr))
    return build_optim_wrapper(model, dict(
        type='OptimWrapper', constructor='LayerDecayConstructor', optimizer=optimizer,
        paramwise_cfg=paramwise))


def settings(model: nn.Module, key: str, **paramwise) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: group[key]
            for group in wrapper(model, **paramwise).optimizer.param_groups
            for parameter in group['params']}


def test_rates_halve_from_layer_to_layer(listed):
    backbone, listing = listed
    top = max(listing.values()) + (not any('norm' in entry for entry in listing))
    rates = settings(Segmentor(backbone), 'lr', layer_decay=0.5, norm_decay_mult=0.)
    expected = {f'backbone.{name}': 0.1 * 0.5 ** (top - listing[owner(name, listing)])
                for name, _ in backbone.named_parameters()}
    expected |= {f'decode_head.{name}': 0.1 for name in ('0.weight', '0.bias', '1.weight',
                                                         '1.bias')}
    assert rates == pytest.approx(expected)


def test_other_options_keep_their_meaning_and_equal_settings_share_a_group():
    model = Segmentor(CSWin(_CROSS))
    options = dict(layer_decay=0.5, norm_decay_mult=0.,
                   custom_keys={'decode_head': dict(lr_mult=10.), 'stage1.0': dict(lr_mult=2.)})
    rates = settings(model, 'lr', **options)
    assert rates['decode_head.0.weight'] == pytest.approx(1.)
    assert rates['backbone.stage1.0.attn.qkv.weight'] == pytest.approx(2 * 0.1 * 0.5 ** 7)
    assert rates['backbone.stage2.0.attn.qkv.weight'] == pytest.approx(0.1 * 0.5 ** 6)
    decay = settings(model, 'weight_decay', **options)
    assert decay['backbone.norm1.weight'] == decay['backbone.stage2.0.norm1.bias'] == 0
    assert decay['backbone.stage2.0.attn.qkv.weight'] == 0.05
    plain = wrapper(model, layer_decay=0.5, norm_decay_mult=0.).optimizer.param_groups
    # The norms and the rest, at each of the depths 0 to 8.
    assert len(plain) == 2 * 9


def test_frozen_stages_are_not_optimized():
    model = Segmentor(CSWin(_CROSS, frozen_stages=1))
    rates = settings(model, 'lr', layer_decay=0.5)
    assert not any(name.startswith(('backbone.embed1', 'backbone.stage1')) for name in rates)
    assert rates['backbone.embed2.conv.weight'] == pytest.approx(0.1 * 0.5 ** 6)


@pytest.mark.parametrize('factor', [None, 0, 1.5, -0.9, '0.9'])
def test_a_wrong_factor_is_refused(factor):
    with pytest.raises(UserError, match='above 0 and at most 1'):
        wrapper(Segmentor(CSWin(_CROSS)), layer_decay=factor)


def test_what_it_cannot_work_with_is_refused():
    with pytest.raises(UserError, match='model.backbone is a Conv2d'):
        wrapper(Segmentor(nn.Conv2d(3, 4, 1)), layer_decay=0.9)
    with pytest.raises(UserError, match='optimizer.lr'):
        wrapper(Segmentor(CSWin(_CROSS)), lr=None, layer_decay=0.9)
