"""The image classifiers: the official logits, every way to load and to change them."""
import copy
import pickle

import pytest
import timm
import torch
from safetensors.torch import save_file

import visattn_dense.interop.timm_models  # noqa: F401  (enters the models)
from tests.goldens import assert_outputs, load_case
from visattn_dense.errors import UserError
from visattn_dense.interop.classifier import FORMS, Classifier
from visattn_dense.layers import optimize_for_inference, sinusoid_table
from visattn_dense.registry import BACKBONES
from visattn_dense.zoo.table import find_release, releases

SMALL = ['visattn_cswin_tiny', 'visattn_flattencswin_tiny', 'visattn_biformer_tiny',
         'visattn_efficientvit_b0', 'visattn_efficientvit_l0', 'visattn_t2tvit_7']


@pytest.mark.parametrize('case, name, options, wrapper, prefix', [
    ('logits_cswin_tiny', 'visattn_cswin_tiny', {}, 'state_dict_ema', ''),
    ('logits_flatten_cswin_tiny', 'visattn_flattencswin_tiny', {}, 'model', ''),
    ('logits_biformer_tiny', 'visattn_biformer_tiny', {}, 'model', ''),
    ('logits_efficientvit_b1', 'visattn_efficientvit_b1', {}, 'state_dict', ''),
    ('logits_efficientvit_b1', 'visattn_efficientvit_b1', {}, 'state_dict', 'module.'),
    ('logits_efficientvit_l1', 'visattn_efficientvit_l1', {}, 'state_dict', ''),
    # The golden model has the default scale, the released weights have another.
    ('logits_t2t_vit_7', 'visattn_t2tvit_7', dict(qk_scale=64**-.5), 'state_dict_ema', ''),
    ('logits_t2t_vit_7', 'visattn_t2tvit_7', dict(qk_scale=64**-.5), 'state_dict_ema', 'module.'),
    ('t2t_vit_dense', 'visattn_t2tvit_dense', {}, 'state_dict_ema', ''),
])
def test_logits_are_the_official_codes(case, name, options, wrapper, prefix, tmp_path):
    _, arrays, state, image = load_case(case)
    if 't2t' in case:
        state['pos_embed'] = sinusoid_table(197, state['cls_token'].shape[-1])
    torch.save({wrapper: {prefix + key: tensor for key, tensor in state.items()}},
               tmp_path / 'official.pth')
    model = timm.create_model(name, pretrained=True, **options, pretrained_cfg_overlay=dict(
        file=str(tmp_path / 'official.pth'))).eval()
    with torch.no_grad():
        logits = model(image)
        assert_outputs(dict(logits=logits), arrays)
        features = model.forward_features(image)
        torch.testing.assert_close(model.forward_head(features), logits)
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (len(image), model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), logits)


def test_released_weights_have_the_authors_scale(tmp_path):
    """T2T-ViT: with nothing said the scale of a released file is embed_dim^-½."""
    _, arrays, state, image = load_case('logits_t2t_vit_7')
    state['pos_embed'] = sinusoid_table(197, 256)
    torch.save(dict(state_dict_ema=state), tmp_path / 'official.pth')
    model = timm.create_model('visattn_t2tvit_7', pretrained=True, pretrained_cfg_overlay=dict(
        file=str(tmp_path / 'official.pth'))).eval()
    assert float(model.backbone.qk_scale) == pytest.approx(256**-.5)
    with torch.no_grad():
        logits = model(image)
    assert arrays['logits'].error(logits) > 1e-3
    model.backbone.set_qk_scale(64**-.5)
    with torch.no_grad():
        assert_outputs(dict(logits=model(image)), arrays)


def test_timm_classifies_with_the_file_in_the_cache(tmp_path, monkeypatch):
    """timm's own model and ours, from the file that timm wrote."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    path = find_release('efficientvit_b0_r224_timm').path
    path.parent.mkdir(parents=True)
    theirs = timm.create_model('efficientvit_b0').eval()
    save_file(theirs.state_dict(), path)
    ours = timm.create_model('visattn_efficientvit_b0', pretrained=True).eval()
    hidden = torch.randn(3, 128, 2, 2)
    with torch.no_grad():
        # timm's attention has another eps, which counts at random weights: the heads alone.
        torch.testing.assert_close(ours.forward_head(hidden), theirs.forward_head(hidden))
        assert ours(torch.randn(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize('name', SMALL)
def test_a_classifier_is_saved_and_loaded(name, tmp_path):
    model = timm.create_model(name, num_classes=6).eval()
    # Not the values that a fresh model has.
    for tensor in model.state_dict().values():
        if tensor.is_floating_point() and tensor.ndim:
            tensor.add_(.01 * torch.randn_like(tensor))
    torch.save(model.state_dict(), tmp_path / 'own.pth')
    overlay = dict(file=str(tmp_path / 'own.pth'), num_classes=6)
    again = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)

    other = timm.create_model(name, pretrained=True, num_classes=3, pretrained_cfg_overlay=overlay)
    last = f'{model.form.classifier_name}.'
    for key, tensor in model.state_dict().items():
        assert key.startswith(last) or torch.equal(other.state_dict()[key], tensor), key
    assert other.get_classifier().weight.shape[0] == 3

    wrong = dict(overlay, num_classes=7)
    with pytest.raises(UserError, match=rf'7 classes: {last}weight.*\(6, '):
        timm.create_model(name, pretrained=True, pretrained_cfg_overlay=wrong)


@pytest.mark.parametrize('name', SMALL)
def test_the_classifier_is_reset(name):
    model = timm.create_model(name, num_classes=4).eval()
    image = torch.randn(2, 3, 64, 64)
    before = copy.deepcopy(model.state_dict())
    model.reset_classifier(9)
    assert model.num_classes == 9 and model(image).shape == (2, 9)
    for key, tensor in model.state_dict().items():
        assert key.startswith(model.form.classifier_name) or torch.equal(before[key], tensor), key
    model.reset_classifier(0)
    assert model(image).shape == (2, model.head_hidden_size)
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    model.reset_classifier(0, '')
    features = model.forward_features(image)
    torch.testing.assert_close(model(image), features)
    assert features.shape == ((2, 17, model.num_features) if 't2t' in name
                              else (2, model.num_features, 2, 2))
    model.reset_classifier(3)
    assert model(image).shape == (2, 3) and model.global_pool == model.form.pool
    with pytest.raises(UserError, match='num_classes=0'):
        model.reset_classifier(3, '')
    assert model.num_classes == 3 and model(image).shape == (2, 3), 'it stays as it was'


@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('options', [{}, dict(num_classes=0, global_pool='')])
def test_every_parameter_gets_a_gradient(name, options):
    model = timm.create_model(name, **options).train()
    model(torch.randn(2, 3, 64, 64)).square().mean().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]


@pytest.mark.parametrize('name', SMALL)
def test_copies_and_optimized_models_compute_the_same(name):
    model = timm.create_model(name, num_classes=5).eval()
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        wanted = model(image)
        torch.testing.assert_close(pickle.loads(pickle.dumps(model))(image), wanted)
        torch.testing.assert_close(optimize_for_inference(copy.deepcopy(model))(image), wanted,
                                   rtol=1e-4, atol=1e-5)


def test_the_mean_of_the_tokens():
    model = timm.create_model('visattn_t2tvit_7', num_classes=5, global_pool='avg').eval()
    tokens = torch.randn(2, 1 + 6, 256)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), tokens[:, 1:].mean(1))


def test_dropout_acts_before_the_classifier():
    model = timm.create_model('visattn_cswin_tiny', drop_rate=.9).train()
    kept = model.forward_head(torch.ones(4, 512, 2, 2), pre_logits=True)
    assert .8 < (kept == 0).float().mean() < .97
    assert (model.eval().forward_head(torch.ones(4, 512, 2, 2), pre_logits=True) == 1).all()


@pytest.mark.parametrize('name, millions', [
    # The authors' figures, up to their rounding.
    ('visattn_cswin_base', 78), ('visattn_biformer_base', 56.8), ('visattn_efficientvit_b3', 49),
    ('visattn_efficientvit_l2', 64), ('visattn_flattencswin_base', 75),
    ('visattn_t2tvit_24', 64.1), ('visattn_t2tvit_16_ghost', 16.3),
    ('visattn_t2tvit_dense', 23.6)])
def test_parameters_are_the_published_ones(name, millions):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=.012)


def test_every_variant_has_a_classifier():
    for family, form in FORMS.items():
        assert not form.widths or form.widths.keys() == BACKBONES[family].archs.keys()
    assert FORMS.keys() >= {release.family for release in releases().values()}


def test_options_as_the_authors_classify():
    assert timm.create_model('visattn_biformer_tiny').backbone.stages[0][0].attn.n_win == 7
    model = timm.create_model('visattn_t2tvit_14.t2t_vit_14_384')
    assert model.backbone.pos_embed.shape[1] == 1 + 24**2
    assert timm.create_model('visattn_t2tvit_14').backbone.pos_embed.shape[1] == 1 + 14**2


def test_a_file_without_a_classifier_says_so(tmp_path):
    backbone = BACKBONES.build(dict(type='CSWin', arch='tiny'))
    torch.save(backbone.state_dict(), tmp_path / 'backbone.pth')
    overlay = dict(file=str(tmp_path / 'backbone.pth'))
    with pytest.raises(UserError, match='norm.weight.*features_only=True'):
        timm.create_model('visattn_cswin_tiny', pretrained=True, pretrained_cfg_overlay=overlay)
    with pytest.raises(UserError, match='norm.weight'):
        timm.create_model('visattn_cswin_tiny', pretrained=True, num_classes=0,
                          pretrained_cfg_overlay=overlay)
    timm.create_model('visattn_cswin_tiny', pretrained=True, features_only=True,
                      pretrained_cfg_overlay=overlay)


def test_grey_images_have_their_channel_adapted(tmp_path):
    model = timm.create_model('visattn_cswin_tiny', num_classes=2)
    torch.save(model.state_dict(), tmp_path / 'rgb.pth')
    grey = timm.create_model('visattn_cswin_tiny', pretrained=True, in_chans=1,
                             pretrained_cfg_overlay=dict(file=str(tmp_path / 'rgb.pth'),
                                                         num_classes=2))
    torch.testing.assert_close(grey.backbone.embed1.conv.weight,
                               model.backbone.embed1.conv.weight.sum(1, keepdim=True))


@pytest.mark.parametrize('features_only, safe', [(False, True), (False, False), (True, True)])
def test_a_folder_that_timm_wrote(features_only, safe, tmp_path):
    model = timm.create_model('visattn_t2tvit_7', num_classes=3, qk_scale=.2).eval()
    timm.models.save_for_hf(model, str(tmp_path), model_args=dict(num_classes=3),
                             safe_serialization=safe)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True,
                              features_only=features_only).eval()
    for name, tensor in again.state_dict().items():
        assert 'levels' in name or name == 'backbone.norm.weight' or name == 'backbone.norm.bias' \
            or torch.equal(tensor, model.state_dict()[name]), name
    if not features_only:
        image = torch.randn(1, 3, 64, 64)
        with torch.no_grad():
            torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


@pytest.mark.parametrize('name', SMALL)
def test_the_config_names_the_classifier(name):
    model = timm.create_model(name)
    assert model.get_submodule(model.default_cfg['classifier']) is model.get_classifier()


def test_an_unknown_family_is_refused():
    with pytest.raises(UserError, match='CSWin'):
        Classifier('CSWn', 'tiny')


# FLatten-CSWin differs from CSWin in nothing that these two see, and takes half a minute.
@pytest.mark.parametrize('name', [name for name in SMALL if 'flatten' not in name])
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning', 'ignore::DeprecationWarning',
                            'ignore::FutureWarning')
def test_exported_and_traced_classifiers_compute_the_same(name):
    """docs/timm.md names torch.export and torch.jit.trace in place of torch.jit.script."""
    model = timm.create_model(name, num_classes=5).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        wanted = model(image)
        traced = torch.jit.trace(model, image, check_trace=False)
        torch.testing.assert_close(traced(image), wanted)
        exported = torch.export.export(model, (image,)).module()
        torch.testing.assert_close(exported(image), wanted)
