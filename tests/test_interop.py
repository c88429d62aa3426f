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


@pytest.mark.parametrize('out_indices, channels, strides', [
    ((0, 1, 2, 3), [16, 32, 64, 128], [4, 8, 16, 32]), ((1, -1), [32, 128], [8, 32])])
def test_timm_features_are_the_backbones_maps(out_indices, channels, strides):
    model = timm.create_model('visattn_efficientvit_b0', features_only=True, in_chans=4,
                              out_indices=out_indices, drop_path_rate=.1).eval()
    assert model.feature_info.channels() == channels
    assert model.feature_info.reduction() == strides
    backbone = EfficientViT('b0', in_channels=4, out_indices=[i % 4 for i in out_indices]).eval()
    backbone.load_state_dict(model.backbone.state_dict(), strict=True)
    image = torch.randn(1, 4, 65, 97)
    with torch.no_grad():
        maps = model(image)
        assert isinstance(maps, list) and [m.shape[1] for m in maps] == channels
        for ours, theirs in zip(backbone(image), maps, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


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
    ('visattn_cswin_tiny', {}, 'features_only=True'),
    ('visattn_cswin_tiny', dict(features_only=True, num_classes=3), 'num_classes'),
    ('visattn_cswin_tiny', dict(features_only=True, output_stride=8), 'output_stride'),
    ('visattn_cswin_tiny.cswin_smal', dict(features_only=True, pretrained=True), 'cswin_small'),
    ('visattn_cswin_tiny.cswin_small_224', dict(features_only=True, pretrained=True),
     'CSWin small'),
    ('visattn_biformer_stl', dict(features_only=True, pretrained=True), 'no weights'),
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


def test_neither_needs_openmmlab():
    code = ('import sys, visattn_dense.interop.hub, visattn_dense.interop.timm_models; '
            'import visattn_dense.zoo.__main__; '
            'bad = [m for m in sys.modules if m.split(".")[0] in ("mmengine", "mmcv", "mmseg")]; '
            'sys.exit(str(bad) if bad else 0)')
    subprocess.run([sys.executable, '-c', code], check=True)
