"""The light head of EfficientViT, and released segmentation models loaded whole."""
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.structures import PixelData
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmseg.utils import register_all_modules

from tests.conftest import ROOT
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.heads import EfficientViTSegHead
from visattn_dense.zoo import load_segmentor, translate_checkpoint

register_all_modules(init_default_scope=False)

CONFIGS = sorted(path.name for path in (ROOT / 'configs').glob('efficientvit_*.py'))
SMALL = dict(stem_dim=8, dims=(8, 16, 24, 40), depths=(1, 1, 1, 1), head_dim=8, stem='separable',
             stages=('mbconv', 'mbconv', 'attention', 'attention'), strided_ratios=(4, 4, 4, 4),
             expand_ratios=(4, 4, 4, 4), act='hardswish', norm_eps=1e-5)
HEAD = dict(type='EfficientViTSegHead', in_channels=[16, 24, 40], width=12, depth=2, num_classes=7)


def build(cfg):
    return MODELS.build(dict(cfg, _scope_='mmseg'))


def segmentor(**head):
    return build(dict(
        type='EncoderDecoder', backbone=dict(type='EfficientViT', arch=SMALL),
        decode_head={**HEAD, **head}, train_cfg=dict(), test_cfg=dict(mode='whole')))


def conv_norm(state, prefix, in_dim, dim, kernel=1, groups=1):
    state[f'{prefix}.conv.weight'] = torch.randn(dim, in_dim // groups, kernel, kernel) * .2
    state[f'{prefix}.norm.weight'] = torch.rand(dim) + .5
    state[f'{prefix}.norm.bias'] = torch.randn(dim) * .1
    state[f'{prefix}.norm.running_mean'] = torch.randn(dim) * .1
    state[f'{prefix}.norm.running_var'] = torch.rand(dim) + .5
    state[f'{prefix}.norm.num_batches_tracked'] = torch.tensor(0)


def official_head(*, in_channels=(16, 24, 40), width=12, depth=2, block='mbconv', expand_ratio=4,
                  final_expand=None, num_classes=7):
    """Random tensors under the names that the official SegHead gives them."""
    state, hidden = {}, int(width * expand_ratio)
    for i, channels in enumerate(reversed(in_channels)):
        inner = '' if i == len(in_channels) - 1 else '.op_list.0'
        conv_norm(state, f'input_ops.{i}{inner}', channels, width)
    for i in range(depth):
        main = f'middle.op_list.{i}.main'
        if block == 'mbconv':
            conv_norm(state, f'{main}.inverted_conv', width, hidden)
            conv_norm(state, f'{main}.depth_conv', hidden, hidden, 3, hidden)
        else:
            conv_norm(state, f'{main}.spatial_conv', width, hidden, 3)
        conv_norm(state, f'{main}.point_conv', hidden, width)
    outputs = 'output_ops.0.op_list'
    if final_expand is not None:
        conv_norm(state, f'{outputs}.0', width, width * final_expand)
        width *= final_expand
    last = f'{outputs}.{0 if final_expand is None else 1}.conv'
    state[f'{last}.weight'] = torch.randn(num_classes, width, 1, 1)
    state[f'{last}.bias'] = torch.randn(num_classes)
    return state


def official_backbone(backbone):
    """A B backbone's state under the official names."""
    out = {}
    for name, tensor in backbone.state_dict().items():
        first, rest = name.split('.', 1)
        if first == 'stages':
            stage, rest = rest.split('.', 1)
            first = f'stages.{stage}'
        out[f'{first.replace("stem", "input_stem")}.op_list.{rest}'] = tensor
    return out


def official_forward(state, maps, *, block, act, eps):
    """The official head written out, by its names; maps at strides 8, 16, 32."""
    def layer(x, prefix, activate=False, groups=1):
        weight = state[f'{prefix}.conv.weight']
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=groups)
        x = F.batch_norm(x, *(state[f'{prefix}.norm.{name}'] for name in (
            'running_mean', 'running_var', 'weight', 'bias')), eps=eps)
        return act(x) if activate else x

    x = layer(maps[0], 'input_ops.2')
    for i, factor in ((0, 4), (1, 2)):
        coarse = layer(maps[2 - i], f'input_ops.{i}.op_list.0')
        x = x + F.interpolate(coarse, scale_factor=factor, mode='bicubic')
    depth = len({name.split('.')[2] for name in state if name.startswith('middle.')})
    for i in range(depth):
        main = f'middle.op_list.{i}.main'
        if block == 'mbconv':
            y = layer(x, f'{main}.inverted_conv', True)
            y = layer(y, f'{main}.depth_conv', True, groups=y.shape[1])
        else:
            y = layer(x, f'{main}.spatial_conv', True)
        x = x + layer(y, f'{main}.point_conv')
    last = 'output_ops.0.op_list.0'
    if f'{last}.norm.weight' in state:
        x, last = layer(x, last, True), 'output_ops.0.op_list.1'
    return F.conv2d(x, state[f'{last}.conv.weight'], state[f'{last}.conv.bias'])


# As the released B and L heads differ.
KINDS = {'mbconv': dict(act='hardswish', norm_eps=1e-5),
         'fused': dict(act='gelu_tanh', norm_eps=1e-7)}


@pytest.mark.parametrize('final_expand', [None, 4])
@pytest.mark.parametrize('block', list(KINDS))
def test_released_model_loads_whole(block, final_expand, tmp_path):
    sizes = dict(block=block, final_expand=final_expand)
    head, source = official_head(**sizes), segmentor(**sizes, **KINDS[block]).backbone
    torch.save({'state_dict': {
        **{f'backbone.{name}': tensor for name, tensor in official_backbone(source).items()},
        **{f'head.{name}': tensor for name, tensor in head.items()}}}, tmp_path / 'official.pt')

    model = segmentor(**sizes, **KINDS[block]).eval()
    report = load_segmentor(model, tmp_path / 'official.pt')
    assert report.fraction == 1 and not report.unused and not report.fresh
    assert len(report.matched) == len(model.state_dict())

    contents = torch.load(tmp_path / 'official.pt')
    translated = segmentor(**sizes, **KINDS[block]).eval()
    assert translate_checkpoint(translated, contents).fraction == 1
    translated.load_state_dict(contents['state_dict'], strict=True)

    x = torch.randn(1, 3, 64, 96)
    act = F.hardswish if block == 'mbconv' else (lambda y: F.gelu(y, approximate='tanh'))
    with torch.no_grad():
        maps = source.eval()(x)
        expected = official_forward(head, maps[1:], block=block, act=act,
                                    eps=KINDS[block]['norm_eps'])
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(translated(x), model(x), rtol=0, atol=0)


def test_native_names_load_too_and_pass_translation_unchanged(tmp_path):
    source, model = segmentor(), segmentor()
    contents = {'state_dict': {f'module.{k}': v for k, v in source.state_dict().items()},
                'meta': {'iter': 3}}
    before = dict(contents)
    assert translate_checkpoint(model, contents) is None
    assert contents == before
    torch.save(contents, tmp_path / 'ours.pth')
    assert load_segmentor(model, tmp_path / 'ours.pth').fraction == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, source.state_dict()[name]), name


def test_an_auxiliary_head_that_a_file_lacks_is_no_fault(tmp_path):
    model = build(dict(
        type='EncoderDecoder', backbone=dict(type='EfficientViT', arch=SMALL), decode_head=HEAD,
        auxiliary_head=dict(type='FCNHead', in_channels=24, in_index=2, channels=8, num_convs=1,
                            concat_input=False, num_classes=7)))
    torch.save(segmentor().state_dict(), tmp_path / 'plain.pth')
    report = load_segmentor(model, tmp_path / 'plain.pth')
    assert report.fraction == 1
    assert report.fresh and all(name.startswith('auxiliary_head.') for name in report.fresh)


def test_other_classes_are_refused_and_nothing_is_changed(tmp_path):
    torch.save({'state_dict': {
        **{f'backbone.{k}': v for k, v in official_backbone(segmentor().backbone).items()},
        **{f'head.{k}': v for k, v in official_head(num_classes=19).items()}}},
        tmp_path / 'official.pt')
    model = segmentor()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r'conv_seg.weight \(19, 12, 1, 1\) in the file'):
        load_segmentor(model, tmp_path / 'official.pt')
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize('size', [(64, 96), (65, 97), (31, 17), (1, 1)])
def test_any_size_gives_logits_at_stride_8(size):
    with torch.no_grad():
        logits = segmentor().eval()(torch.randn(1, 3, *size))
    assert logits.shape == (1, 7, -(-size[0] // 8), -(-size[1] // 8))
    assert logits.isfinite().all()


def test_training_learns_one_image_by_heart():
    model, x = segmentor(dropout_ratio=.1).train(), torch.randn(2, 3, 64, 64)
    sample = SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long)))
    sample.gt_sem_seg.data[:, :, 32:] = 5
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(25):
        losses.append(model.loss(x, [sample, sample])['decode.loss_ce'])
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert all(p.grad is not None for p in model.decode_head.parameters())
    assert losses[-1] < .3 * losses[0]


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bf16', 'fp16'])
def test_half_precision_stays_close(dtype):
    model, x = segmentor().eval(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        exact = model(x)
        with torch.autocast('cpu', dtype=dtype):
            rough = model(x)
    assert (rough.float() - exact).norm() < .05 * exact.norm()


def test_an_unknown_block_is_refused():
    with pytest.raises(UserError, match='mbconv'):
        EfficientViTSegHead([16, 24, 40], width=12, num_classes=7, block='mbconf')


def test_registered_with_mmseg_by_importing_the_package_alone():
    import subprocess
    import sys
    code = ('import sys, visattn_dense; assert "torch" not in sys.modules; import mmseg.models; '
            'from mmseg.registry import MODELS; assert MODELS.get("EfficientViTSegHead")')
    subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)


# Parameters in millions and classes of the released models, from the authors' README.
PUBLISHED = {'b0_cityscapes': .7, 'b1_cityscapes': 4.8, 'b2_cityscapes': 15, 'b3_cityscapes': 40,
             'l1_cityscapes': 40, 'l2_cityscapes': 53, 'b1_ade20k': 4.8, 'b2_ade20k': 15,
             'b3_ade20k': 39, 'l1_ade20k': 40, 'l2_ade20k': 51}


def test_there_is_a_config_for_every_released_model():
    assert CONFIGS == sorted(f'efficientvit_{name}.py' for name in PUBLISHED)


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_build_the_published_size(name):
    with torch.device('meta'):
        model = build(Config.fromfile(ROOT / 'configs' / name).model)
    count = sum(p.numel() for p in model.parameters()) / 1e6
    published = PUBLISHED[name.removeprefix('efficientvit_').removesuffix('.py')]
    # Published as whole millions, rounded or cut.
    assert count == pytest.approx(published, abs=.05 if published < 10 else .75)
    assert model.num_classes == (150 if 'ade20k' in name else 19)
    eps = {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert eps == {1e-7 if '_l' in name else 1e-5}


def test_tools_test_evaluates_a_released_file(shared, tmp_path, monkeypatch, capfd):
    """tools/test.py takes the authors' file as it is and reports a mIoU on real images."""
    from visattn_dense.openmmlab.engine.launch import test as run_test
    config = ROOT / 'configs' / 'efficientvit_b1_ade20k.py'
    model = build(Config.fromfile(config).model)
    head = official_head(in_channels=(64, 128, 256), width=64, depth=3, num_classes=150)
    torch.save({'state_dict': {
        **{f'backbone.{k}': v for k, v in official_backbone(model.backbone).items()},
        **{f'head.{k}': v for k, v in head.items()}}}, tmp_path / 'efficientvit_seg_b1_ade20k.pt')
    monkeypatch.setenv('ADE20K_ROOT', os.fspath(shared / 'data' / 'ade20k_sample'))
    code = run_test([os.fspath(config), os.fspath(tmp_path / 'efficientvit_seg_b1_ade20k.pt'),
                     '--work-dir', os.fspath(tmp_path / 'work'), '--cfg-options',
                     'test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False'])
    log = ''.join(path.read_text() for path in Path(tmp_path / 'work').rglob('*.log'))
    assert code == 0, capfd.readouterr().err
    count = len(model.state_dict())
    assert f'matched {count} of {count} tensors (100.0%)' in log
    assert 'mIoU' in log and 'size mismatch' not in log and 'missing keys' not in log
