"""The model zoo: its table is right about what is here, and its names work where checkpoints do."""
import dataclasses
from pathlib import Path
from urllib.parse import urlparse

import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.goldens import load_case
from visattn_dense.backbones import CSWin, EfficientViT
from visattn_dense.checkpoints import MatchReport, load_pretrained, read_checkpoint, unwrap
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.schemes import release_state
from visattn_dense.registry import BACKBONES
from visattn_dense.zoo import load_segmentor, releases, translate_checkpoint
from visattn_dense.zoo.convert import convert
from visattn_dense.zoo.recognise import summarise
from visattn_dense.zoo.segmentor import fit_whole
from visattn_dense.zoo.table import find_release, markdown_table

DOCS = Path(__file__).resolve().parents[1] / 'docs'
B0 = 'visattn://efficientvit_b0_r224_timm'


@pytest.mark.parametrize('release', releases().values(), ids=releases())
def test_every_entry_is_complete(release):
    cls = BACKBONES.get(release.family)
    assert release.arch in cls.archs and release.layout in cls.layouts
    assert release.kind in ('classifier', 'segmentor') and release.licence_from
    assert release.metric == ('top-1' if release.kind == 'classifier' else 'mIoU')
    assert set(release.options) <= {'img_size', 'n_win'}
    if release.url is None:
        assert release.announced.startswith('https://') and release.note
    else:
        assert urlparse(release.url).scheme == 'https'


def test_names_and_files_are_unique():
    files = [release.file for release in releases().values()]
    assert len(set(files)) == len(files) == len(releases()) > 70


def test_the_page_is_up_to_date():
    assert (DOCS / 'zoo.md').read_text(encoding='utf-8') == markdown_table(), (
        'run python -m visattn_dense.zoo zoo --markdown docs/zoo.md')


def test_a_wrong_name_names_the_near_ones():
    with pytest.raises(UserError, match="'cswin_tiny_224'"):
        load_pretrained(CSWin('tiny', out_indices=(0,)), 'visattn://cswin_tiny_24')


def test_a_file_without_an_address_says_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    with pytest.raises(UserError, match='announced at https://github.com/rayleizhu') as error:
        find_release('biformer_small').fetch()
    assert str(tmp_path / 'hub/checkpoints/biformer_small_best.pth') in str(error.value)


@pytest.fixture
def b0(tmp_path, monkeypatch) -> dict:
    """timm's EfficientViT-B0, laid into the cache by hand as its released file; its tensors."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    release = find_release(B0)
    release.path.parent.mkdir(parents=True)
    state = timm.create_model('efficientvit_b0', num_classes=10).state_dict()
    save_file(state, release.path)
    return state


def test_a_name_works_in_init_cfg(b0):
    model = EfficientViT('b0', init_cfg=dict(type='Pretrained', checkpoint=B0))
    model.init_weights()
    torch.testing.assert_close(model.state_dict()['stem.0.conv.weight'],
                               b0['stem.in_conv.conv.weight'])


def test_a_name_works_wherever_mmengine_takes_a_checkpoint(b0):
    from mmengine.runner import load_checkpoint
    bare, whole = EfficientViT('b0'), torch.nn.ModuleDict({'backbone': EfficientViT('b0')})
    for model in (bare, whole):
        load_checkpoint(model, B0, map_location='cpu')
    # Twice the same tensors, none of them as they were initialised.
    for (name, tensor), other in zip(bare.state_dict().items(), whole.state_dict().values(),
                                     strict=True):
        torch.testing.assert_close(tensor, other, msg=name)
    torch.testing.assert_close(bare.state_dict()['stem.0.conv.weight'],
                               b0['stem.in_conv.conv.weight'])


SMALL = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 7, 7))


def segmentor(num_classes: int = 5):
    """A small UPerNet as the configs build it, in mmseg 1.2.2."""
    from mmseg.models import build_segmentor
    from mmseg.utils import register_all_modules
    register_all_modules()
    norm = dict(type='BN')
    return build_segmentor(dict(
        type='EncoderDecoder', backbone=dict(type='CSWin', arch=SMALL),
        decode_head=dict(type='UPerHead', in_channels=[16, 32, 64, 128], in_index=[0, 1, 2, 3],
                         channels=16, num_classes=num_classes, norm_cfg=norm, align_corners=False),
        auxiliary_head=dict(type='FCNHead', in_channels=64, in_index=2, channels=16, num_convs=1,
                            concat_input=False, num_classes=num_classes, norm_cfg=norm,
                            align_corners=False),
        test_cfg=dict(mode='whole'))).eval()


def as_mmseg0(state: dict) -> dict:
    """A segmentor's tensors as the authors' mmsegmentation 0.x has them."""
    names = {'.embed1.conv.': '.stage1_conv_embed.0.', '.embed1.norm.': '.stage1_conv_embed.2.',
             '.embed2.': '.merge1.', '.embed3.': '.merge2.', '.embed4.': '.merge3.', '.attn.': '.'}
    out = {}
    for name, tensor in state.items():
        if name.startswith('backbone.'):
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
        out[name] = tensor
    return out


# The names of the heads of upernet_cswin_*.pth that differ in nothing but numbers: the modules of
# mmsegmentation 0.11 to 0.30, on which the authors trained.
HEAD_NAMES = [
    'decode_head.conv_seg.weight', 'decode_head.psp_modules.0.1.conv.weight',
    'decode_head.psp_modules.3.1.bn.running_var', 'decode_head.bottleneck.conv.weight',
    'decode_head.lateral_convs.2.bn.bias', 'decode_head.fpn_convs.0.conv.weight',
    'decode_head.fpn_bottleneck.bn.weight', 'auxiliary_head.convs.0.conv.weight',
    'auxiliary_head.conv_seg.bias']


def test_a_whole_upernet_of_mmseg_0_evaluates_here(tmp_path):
    source, target, other, third = (segmentor() for _ in range(4))
    old = as_mmseg0(source.state_dict())
    assert set(HEAD_NAMES) <= old.keys() and not any('.embed1.' in name for name in old)
    torch.save({'meta': {'mmseg_version': '0.11.0'}, 'state_dict': old, 'optimizer': {}},
               tmp_path / 'upernet.pth')
    assert load_segmentor(target, tmp_path / 'upernet.pth').fraction == 1
    release = dataclasses.replace(find_release('upernet_cswin_tiny'), arch=SMALL)
    other.load_state_dict(release_state(release, old), strict=True)
    # What the runner's hook does to a file given to `load_from` or tools/test.py.
    contents = torch.load(tmp_path / 'upernet.pth', weights_only=True)
    assert translate_checkpoint(third, contents).fraction == 1
    third.load_state_dict(contents['state_dict'], strict=True)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = source.encode_decode(image, [dict(img_shape=(64, 96))])
        for model in (target, other, third):
            torch.testing.assert_close(model.encode_decode(image, [dict(img_shape=(64, 96))]),
                                       expected, rtol=0, atol=0)


def test_other_classes_are_said_to_start_fresh(tmp_path):
    torch.save(as_mmseg0(segmentor(5).state_dict()), tmp_path / 'upernet.pth')
    target = segmentor(3)
    before = target.decode_head.conv_seg.weight.clone()
    with pytest.raises(UserError, match='number of classes'):
        load_segmentor(target, tmp_path / 'upernet.pth')
    report = load_segmentor(target, tmp_path / 'upernet.pth', new_classes=True)
    assert len(report.fresh) == 4 and 'fresh' in str(report) and '(5, 16, 1, 1)' in str(report)
    assert torch.equal(target.decode_head.conv_seg.weight, before)


def test_a_whole_efficientvit_seg_is_converted_with_its_head(tmp_path):
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules

    from tests.test_efficientvit_seg import official_backbone, official_head
    register_all_modules()
    model = MODELS.build(dict(
        type='EncoderDecoder', _scope_='mmseg', backbone=dict(type='EfficientViT', arch='b0'),
        decode_head=dict(type='EfficientViTSegHead', in_channels=[32, 64, 128], width=12, depth=2,
                         num_classes=7)))
    state = {f'backbone.{name}': t for name, t in official_backbone(EfficientViT('b0')).items()}
    head = official_head(in_channels=(32, 64, 128))
    whole = state | {f'head.{name}': tensor for name, tensor in head.items()}
    summary = summarise({'state_dict': whole})
    assert summary.kind == 'segmentor' and summary.candidates[0].arch == 'b0'
    model.load_state_dict(convert({'state_dict': whole})[0], strict=True)
    classes = head['output_ops.0.op_list.0.conv.weight']
    assert torch.equal(model.decode_head.conv_seg.weight, classes)
    # A classifier has the same name, and no place here.
    classifier = state | {'head.op_list.0.conv.weight': torch.zeros(8, 8, 1, 1)}
    assert summarise({'state_dict': classifier}).kind == 'classifier'
    EfficientViT('b0').load_state_dict(convert({'state_dict': classifier})[0], strict=True)


GOLDENS = {  # golden case -> (family, arch, a release of its family)
    'cswin_tiny_128x160': ('CSWin', 'tiny', 'cswin_tiny_224'),
    'biformer_tiny_128x128': ('BiFormer', 'tiny', 'biformer_tiny'),
    'flatten_cswin_tiny_global_224': ('FLattenCSWin', 'tiny', 'flatten_cswin_tiny'),
    'efficientvit_b0_128x160': ('EfficientViT', 'b0', 'efficientvit_b1_r224'),
    't2t_vit_7': ('T2TViT', '7', 't2t_vit_7'),
}


@pytest.mark.parametrize('case', GOLDENS)
def test_golden_weights_wrapped_as_their_authors_wrap_them(case, tmp_path):
    family, arch, name = GOLDENS[case]
    state = load_case(case)[2]
    # A buffer that the authors saved as a parameter and the golden case leaves out.
    if family == 'T2TViT':
        state['pos_embed'] = BACKBONES.get(family)(arch).pos_embed
    release = find_release(name)
    contents = {'epoch': 299}
    for wrapper in release.wrappers:
        # What stands under the later ones are the weights before averaging.
        contents.setdefault(wrapper, state if wrapper == release.wrappers[0] else
                            {key: tensor * 0 for key, tensor in state.items()})
    assert unwrap(contents) is not contents
    torch.save(contents, tmp_path / release.file)
    model, again = (BACKBONES.build(dict(type=family, arch=arch)) for _ in range(2))
    report = load_pretrained(model, tmp_path / release.file)
    assert documented(family, release.layout, release.wrappers, report)
    # Once more in this project's names.
    state, _ = convert(read_checkpoint(tmp_path / release.file))
    torch.save({'state_dict': state}, tmp_path / 'native.pth')
    native = load_pretrained(again, tmp_path / 'native.pth')
    assert native.layout == 'native' and documented(family, 'native', ['state_dict'], native)
    for name in report.matched:
        assert torch.equal(model.state_dict()[name], again.state_dict()[name]), name


def test_timm_weights_are_documented_too(b0):
    report = load_pretrained(EfficientViT('b0'), B0)
    assert documented('EfficientViT', 'timm', [], report)


def documented(family: str, layout: str, wrappers: list[str], report: MatchReport) -> bool:
    """Whether the table of docs/checkpoints.md says what was matched."""
    page = (DOCS / 'checkpoints.md').read_text(encoding='utf-8')
    row = (f'| {family} | {layout} | {", ".join(f"`{wrapper}`" for wrapper in wrappers) or "none"} '
           f'| {report.fraction:.0%} of {len(report.matched)} | {len(report.fresh)} |')
    print(row)
    return row in page


def test_another_number_of_classes_is_named_and_not_tested_at_random():
    """95 % of the tensors fit; those that decide do not. New classes are asked for, and named."""
    contents = {'state_dict': segmentor(3).state_dict()}
    with pytest.raises(UserError, match='trained with 3 classes, the config has 4'):
        fit_whole(segmentor(4), contents, origin='x.pth')
    _, report = fit_whole(segmentor(4), contents, origin='x.pth', new_classes=True, training=True)
    anew = ' '.join(report.fresh)
    assert 'decode_head.conv_seg.weight' in anew and 'auxiliary_head.conv_seg.bias' in anew
    # An auxiliary head acts in training alone.
    other = {name: tensor for name, tensor in segmentor(4).state_dict().items()
             if not name.startswith('auxiliary_head')}
    fit_whole(segmentor(4), {'state_dict': other}, origin='x.pth')


@pytest.mark.parametrize('layer, background', [('fc_cls', 1), ('conv_logits', 0)])
def test_a_detectors_number_of_classes_is_named(layer, background):
    def detector(classes: int) -> torch.nn.Module:
        model = torch.nn.Module()
        model.backbone = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(40)))
        model.roi_head = torch.nn.Module()
        model.roi_head.add_module(layer, torch.nn.Linear(2, classes + background))
        return model

    with pytest.raises(UserError, match='trained with 2 classes, the config has 3'):
        fit_whole(detector(3), {'state_dict': detector(2).state_dict()}, origin='x.pth')
