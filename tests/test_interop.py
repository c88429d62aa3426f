"""The backbones in timm and huggingface_hub: same weights, same maps, no OpenMMLab."""
import json
import subprocess
import sys

import pytest
import timm
import torch
from safetensors.torch import save_file

import visattn_dense.interop.timm_models  # noqa: F401  (enters the models)
from visattn_dense.backbones import EfficientViT
from visattn_dense.checkpoints import load_pretrained
from visattn_dense.errors import UserError
from visattn_dense.interop.hub import HubBackbone
from visattn_dense.registry import BACKBONES
from visattn_dense.zoo.table import find_release


def test_every_variant_is_a_timm_model():
    variants = {f'visattn_{family}_{arch}'.lower() for family, cls in BACKBONES.module_dict.items()
                for arch in getattr(cls, 'archs', ())}
    assert variants <= set(timm.list_models('visattn_*')) and len(variants) > 30


@pytest.mark.parametrize('out_indices, stages', [
    ((0, 1, 2, 3), (0, 1, 2, 3)), ((1, -1), (1, 3)), (2, (2, 3)), ((-3, -4), (1, 0)), ([3], (3,))])
def test_timm_features_are_the_backbones_maps(out_indices, stages):
    model = timm.create_model('visattn_efficientvit_b0', features_only=True, in_chans=4,
                              out_indices=out_indices, drop_path_rate=.1).eval()
    channels = [(16, 32, 64, 128)[i] for i in stages]
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == [4 * 2**i for i in stages]
    assert model.feature_info.out_indices == stages
    assert model.feature_info.channels(2) == 64, 'by stage, whichever are returned'
    backbone = EfficientViT('b0', in_channels=4, out_indices=stages).eval()
    backbone.load_state_dict(model.backbone.state_dict(), strict=True)
    image = torch.randn(1, 4, 65, 97)
    with torch.no_grad():
        maps = model(image)
        assert isinstance(maps, list) and [m.shape[1] for m in maps] == channels
        for ours, theirs in zip(backbone(image), maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize('bad', [(1, 2, 3, 4), (4,), (-5,), 0, 5, -1, ()])
def test_out_indices_out_of_range_are_refused(bad):
    with pytest.raises(UserError, match='out_indices'):
        timm.create_model('visattn_efficientvit_b0', features_only=True, out_indices=bad)


def test_features_take_what_timms_own_nets_take():
    torch.manual_seed(1)
    plain = timm.create_model('visattn_efficientvit_b0', features_only=True).eval()
    options = dict(features_only=True, num_classes=7, global_pool='', drop_rate=.5)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        maps = plain(image)
    for extra in (dict(feature_cls='getter'), dict(feature_cls='dict'), dict(output_fmt='NHWC')):
        model = timm.create_model('visattn_efficientvit_b0', **options, **extra).eval()
        model.load_state_dict(plain.state_dict())
        with torch.no_grad():
            out = model(image)
        if extra.get('feature_cls') == 'dict':
            assert list(out) == ['0', '1', '2', '3']
            out = list(out.values())
        if extra.get('output_fmt') == 'NHWC':
            assert model.output_fmt == 'NHWC'
            out = [m.permute(0, 3, 1, 2) for m in out]
        for a, b in zip(maps, out, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize('features_only', [True, False])
def test_checkpointing_is_timms_switch(features_only):
    """The blocks run once more in backward, and the gradients stay."""
    model = timm.create_model('visattn_efficientvit_b0', features_only=features_only).train()
    image = torch.randn(2, 3, 64, 64)
    runs = []
    model.backbone.stages[2][1].register_forward_pre_hook(lambda *_: runs.append(1))
    gradients = {}
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        runs.clear()
        model.zero_grad()
        out = model(image)
        (out[-1] if features_only else out).square().mean().backward()
        assert len(runs) == 1 + enable
        gradients[enable] = model.backbone.stem[0].conv.weight.grad.clone()
    torch.testing.assert_close(gradients[True], gradients[False])


def test_pretrained_configs_are_registered():
    names = timm.list_models('visattn*', pretrained=True)
    assert 'visattn_cswin_tiny.cswin_tiny_224' in names
    assert not [name for name in names if 'biformer' in name], 'no address of these is known'
    value = timm.models.get_pretrained_cfg_value
    assert value('visattn_cswin_base_384', 'input_size') == (3, 384, 384)
    assert value('visattn_cswin_base_384', 'crop_pct') == 1
    assert value('visattn_t2tvit_14.t2t_vit_14_384', 'input_size') == (3, 384, 384)
    assert value('visattn_cswin_large.cswin_large_22k_224', 'num_classes') == 21841
    assert value('visattn_biformer_stl', 'input_size') == (3, 224, 224)
    with pytest.raises(RuntimeError, match='cswin_tiny_225'):
        value('visattn_cswin_tiny.cswin_tiny_225', 'mean')
    features = timm.create_model('visattn_efficientvit_b1.efficientvit_b1_r288',
                                 features_only=True)
    assert features.default_cfg['input_size'] == (3, 288, 288)
    assert features.pretrained_cfg['tag'] == 'efficientvit_b1_r288'
    assert 'num_classes' not in features.default_cfg
    assert set(timm.list_models('visattn_*')) == {
        name.split('.')[0] for name in timm.models._registry._model_pretrained_cfgs
        if name.startswith('visattn_')}, 'every model has a config'


def test_a_config_of_the_users_own_is_taken(tmp_path):
    source = timm.create_model('visattn_efficientvit_b0', num_classes=5)
    save_file(source.state_dict(), tmp_path / 'own.safetensors')
    given = dict(file=str(tmp_path / 'own.safetensors'), num_classes=5, input_size=(3, 96, 96))
    for options in (dict(pretrained_cfg=given), dict(pretrained_cfg_overlay=given)):
        model = timm.create_model('visattn_efficientvit_b0', pretrained=True, **options)
        assert model.num_classes == 5 and model.default_cfg['input_size'] == (3, 96, 96)
        for name, tensor in source.state_dict().items():
            assert torch.equal(model.state_dict()[name], tensor), name


def test_segmentation_models_pytorch_builds_on_them(tmp_path, monkeypatch):
    smp = pytest.importorskip('segmentation_models_pytorch')
    params = smp.encoders.get_preprocessing_params('tu-visattn_cswin_tiny')
    assert params['mean'] == [.485, .456, .406] and params['input_range'] == [0, 1]
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = find_release('efficientvit_b0_r224_timm').path
    path.parent.mkdir(parents=True)
    theirs = timm.create_model('efficientvit_b0', num_classes=10)
    save_file(theirs.state_dict(), path)
    for depth in (5, 3):
        model = smp.Unet('tu-visattn_efficientvit_b0', encoder_weights=True, classes=3,
                         encoder_depth=depth, decoder_channels=(64, 48, 32, 24, 16)[:depth])
        weight = model.encoder.model.backbone.stem[0].conv.weight
        assert torch.equal(weight, theirs.stem.in_conv.conv.weight)
        model(torch.randn(2, 3, 64, 96)).mean().backward()
        assert weight.grad.abs().sum() > 0


@pytest.mark.parametrize('name', ['visattn_efficientvit_b0',
                                  'visattn_efficientvit_b0.efficientvit_b0_r224_timm'])
def test_timm_loads_released_weights(name, tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = find_release('efficientvit_b0_r224_timm').path
    path.parent.mkdir(parents=True)
    theirs = timm.create_model('efficientvit_b0', num_classes=10).eval()
    save_file(theirs.state_dict(), path)
    ours = timm.create_model(name, pretrained=True, features_only=True).eval()
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        # Where attention begins timm has another eps, which counts at random weights.
        for a, b in zip(ours(image)[:2], theirs.forward_intermediates(
                image, indices=[0, 1], intermediates_only=True), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    weight = theirs.state_dict()['stages.3.blocks.2.local_module.main.point_conv.conv.weight']
    assert any(torch.equal(weight, tensor) for tensor in ours.state_dict().values())


@pytest.mark.parametrize('name, options, message', [
    ('visattn_cswin_tiny', dict(features_only=True, output_stride=8), 'output_stride'),
    ('visattn_cswin_tiny.cswin_smal', dict(features_only=True, pretrained=True),
     'cswin_tiny_224'),
    ('visattn_cswin_tiny.cswin_small_224', dict(features_only=True, pretrained=True),
     'CSWin small'),
    ('visattn_biformer_stl', dict(features_only=True, pretrained=True), 'no weights'),
    ('visattn_cswin_tiny.cswin_tiny_225', dict(), 'cswin_tiny_224'),
    ('visattn_cswin_tiny.upernet_cswin_tiny', dict(num_classes=3, global_pool=''), 'num_classes=0'),
    ('visattn_cswin_tiny', dict(global_pool='max'), "'avg'"),
    ('visattn_cswin_tiny', dict(features_only=True, feature_cls='hook'), 'getter'),
    ('visattn_cswin_tiny', dict(features_only=True, output_fmt='NLC'), 'NHWC'),
    ('visattn_cswin_tiny', dict(in_channels=4), 'in_chans'),
    ('visattn_cswin_tiny', dict(img_size=256), 'any image size'),
    ('visattn_cswin_tiny', dict(features_only=True, drop_path_rat=.1), 'drop_path_rate'),
    ('visattn_cswin_tiny', dict(cache_dir='/tmp/x'), 'TORCH_HOME'),
    ('visattn_cswin_tiny', dict(pretrained_cfg_overlay=dict(fiel='x')), 'fiel'),
    ('visattn_cswin_tiny', dict(pretrained=True, pretrained_cfg_overlay=dict(file='no.pth')),
     'no.pth'),
    ('visattn_cswin_tiny', dict(pretrained=True, pretrained_cfg=dict(hf_hub_id='a/b')), 'Hub'),
])
def test_timm_gets_clear_answers(name, options, message):
    with pytest.raises(UserError, match=message):
        timm.create_model(name, **options)


def test_a_folder_keeps_model_and_card(tmp_path):
    model = HubBackbone('EfficientViT', 'b0', dict(in_channels=4, out_indices=[1, 3])).eval()
    model.save_pretrained(tmp_path / 'm', model_card_kwargs=dict(weights='Trained on nothing.'))
    again = HubBackbone.from_pretrained(tmp_path / 'm').eval()
    image = torch.randn(1, 4, 33, 47)
    with torch.no_grad():
        for a, b in zip(model(image), again(image), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
    card = (tmp_path / 'm' / 'README.md').read_text()
    assert card.startswith('---\nlibrary_name: visattn-dense') and 'Trained on nothing.' in card
    assert '# EfficientViT b0' in card and '32, 128 channels at strides 8, 32' in card
    config = json.loads((tmp_path / 'm' / 'config.json').read_text())
    assert config == dict(family='EfficientViT', arch='b0',
                          options=dict(in_channels=4, out_indices=[1, 3]))
    # The folder's weights are a checkpoint like any other.
    backbone = EfficientViT('b0', in_channels=4, out_indices=[1, 3])
    assert load_pretrained(backbone, tmp_path / 'm' / 'model.safetensors').fraction == 1


def test_a_folder_with_weights_missing_is_not_half_loaded(tmp_path):
    model = HubBackbone('EfficientViT', 'b0')
    model.save_pretrained(tmp_path)
    state = {name: tensor for name, tensor in model.state_dict().items() if 'stages.2' not in name}
    save_file(state, tmp_path / 'model.safetensors')
    with pytest.raises(UserError, match='does not fit EfficientViT b0.*stages.2'):
        HubBackbone.from_pretrained(tmp_path)


def test_a_folder_with_weights_that_are_not_finite_is_refused(tmp_path):
    model = HubBackbone('EfficientViT', 'b0')
    next(model.parameters()).data[0] = torch.nan
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match='NaN or infinity in backbone'):
        HubBackbone.from_pretrained(tmp_path)


@pytest.mark.parametrize('config, words', [
    ('{"family": "os.system", "arch": "b0"}', 'no family'),
    ('{"family": "EfficientViT", "arch": "b9"}', 'b9'),
    ('{"family": "CSWin", "arch": {"embed_dim": 1000000000, "depths": [1, 1, 1, 1], '
     '"num_heads": [2, 4, 4, 8], "stripe_widths": [1, 2, 7, 7]}}', 'no backbone here has more'),
    ('{"family": "CSWin", "arch": {"embed_dim": 64, "depths": [1, 1, 1000000, 1], '
     '"num_heads": [2, 4, 4, 8], "stripe_widths": [1, 2, 7, 7]}}', 'no backbone here has more'),
    ('[1, 2]', 'config.json'), ('{"family": ', 'config.json'), ('{}', ''),
])
def test_a_folder_whose_config_asks_for_the_impossible_is_refused(config, words, tmp_path):
    HubBackbone('EfficientViT', 'b0').save_pretrained(tmp_path)
    (tmp_path / 'config.json').write_text(config)
    with pytest.raises(UserError, match=words):
        HubBackbone.from_pretrained(tmp_path)


def test_neither_needs_openmmlab():
    code = ('import sys, visattn_dense.interop.hub, visattn_dense.interop.timm_models; '
            'import visattn_dense.zoo.__main__; '
            'bad = [m for m in sys.modules if m.split(".")[0] in ("mmengine", "mmcv", "mmseg")]; '
            'sys.exit(str(bad) if bad else 0)')
    subprocess.run([sys.executable, '-c', code], check=True)


def test_device_and_dtype_are_those_asked_for():
    model = timm.create_model('visattn_efficientvit_b0', device='meta', dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {('meta', torch.bfloat16)}
    with torch.device('meta'):
        maps = timm.create_model('visattn_efficientvit_b0', features_only=True)
    assert all(p.is_meta for p in maps.parameters())


def test_an_unknown_argument_is_a_type_error():
    """As Python's own for a function: callers of timm catch this."""
    with pytest.raises(TypeError, match='not_a_model_arg'):
        timm.create_model('visattn_efficientvit_b0', not_a_model_arg=1)


@pytest.mark.parametrize('name', ['visattn_cswin_tiny', 'visattn_efficientvit_b0'])
def test_the_config_names_the_first_convolution_and_the_last_map(name):
    model = timm.create_model(name, num_classes=0, global_pool='')
    cfg = model.default_cfg
    assert model.state_dict()[cfg['first_conv'] + '.weight'].shape[1] == cfg['input_size'][0]
    with torch.no_grad():
        assert model(torch.zeros(1, *cfg['input_size'])).shape[2:] == cfg['pool_size']


def test_a_new_classifier_of_a_frozen_model_is_frozen():
    model = timm.create_model('visattn_efficientvit_b0').requires_grad_(False)
    model.reset_classifier(3)
    assert not any(p.requires_grad for p in model.parameters())
