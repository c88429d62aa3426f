"""Every file in configs/ and demo/configs/ says what it is, builds, and trains what it should."""
import argparse
import ast
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, DefaultScope
from mmengine.runner import Runner
from mmengine.structures import InstanceData
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tests.tiny_runs import run, write_run
from tools.config_openings import TABLE, opening
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.config import add_cfg_options, merge_options, read_config
from visattn_dense.openmmlab.engine.checks import check_class_weights
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.zoo import find_release

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared/data'
CONFIGS = sorted([*(ROOT / 'configs').glob('*.py'), *(ROOT / 'demo/configs').glob('*.py')])
RECIPES = TABLE['recipes']
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)
POSITION_TABLE = re.compile(r'(.*\.)?(absolute_)?(pos_embed|relative_position_bias_table|'
                            'positional_encoding)')


class Built(NamedTuple):
    """A config file, what it says, and its model: without weights where it is mmseg's."""

    path: Path
    cfg: Config
    model: nn.Module


@pytest.fixture(scope='module', params=CONFIGS, ids=lambda path: path.stem)
def built(request) -> Built:
    cfg = load(request.param)
    return Built(request.param, cfg, build(cfg))


def load(path: Path) -> Config:
    cfg = read_config(str(path))
    register_scope(cfg.default_scope)
    return cfg


def build(cfg: Config) -> nn.Module:
    """The model on the meta device; mmdet's anchors are real numbers, so its models are real."""
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.device(
            'meta' if cfg.default_scope == 'mmseg' else 'cpu'):
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def classes_of(dataset: dict, scope: str) -> tuple[str, ...]:
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    with DATASETS.switch_scope_and_registry(scope) as registry:
        own = registry.get(dataset['type']).METAINFO
    return (dataset.get('metainfo') or own)['classes']


def heads(node: object) -> list[dict]:
    """The innermost entries of a model config that have num_classes."""
    if isinstance(node, dict):
        inner = [head for value in node.values() for head in heads(value)]
        return inner + ([node] if 'num_classes' in node else [])
    if isinstance(node, (list, tuple)):
        return [head for value in node for head in heads(value)]
    return []


def test_opens_with_command_hardware_and_number(built):
    text = ast.get_docstring(ast.parse(built.path.read_text())) or ''
    assert f'configs/{built.path.name}' in text, 'no command that runs this very file'
    assert re.search(r'^Hardware', text, re.M)
    assert re.search(r'^Published', text, re.M), 'no published number, nor that there is none'
    assert re.search(r'By us: (not run|[^.\n]*\d)', text), 'no number of ours, nor "not run"'


def test_every_recipe_is_in_the_table():
    assert {path.stem for path in CONFIGS if not path.stem.startswith('demo_')} == set(RECIPES)


@pytest.mark.parametrize('name', RECIPES)
def test_opening_lines_are_the_tables(name):
    assert (ROOT / f'configs/{name}.py').read_text().startswith(opening(name)), (
        'run python tools/config_openings.py')


def test_table_says_what_the_config_does(built):
    if built.path.stem not in RECIPES:
        pytest.skip('the demos are no recipes')
    cfg, row = built.cfg, RECIPES[built.path.stem]
    assert row['images'] == cfg.train_dataloader.batch_size
    assert row['gpus'] * row['images'] == cfg.auto_scale_lr.base_batch_size
    start = cfg.model.backbone.get('init_cfg')
    if row['weights'] is None:
        assert start is None
    else:
        assert start == dict(type='Pretrained', checkpoint=f'visattn://{row["weights"]}')
        release = find_release(row['weights'])
        assert (release.family, release.arch) == (cfg.model.backbone.type, cfg.model.backbone.arch)
        assert release.url


@pytest.mark.parametrize('name, release', [
    *((name, row['released']) for name, row in RECIPES.items() if 'released' in row),
    *((f'upernet_cswin_{size}_ade20k', f'upernet_cswin_{size}')
      for size in ('tiny', 'small', 'base'))])
def test_published_number_is_the_zoos(name, release):
    assert float(RECIPES[name]['published'].split(' mIoU')[0]) == find_release(release).value


@pytest.mark.parametrize('name', [name for name, row in RECIPES.items() if 'own_head' in row])
def test_number_with_the_authors_head_is_the_zoos(name):
    release = find_release(name.replace('upernet_efficientvit', 'efficientvit_seg'))
    assert RECIPES[name]['own_head'] == f'{release.value:.3f} mIoU'


def test_classes_of_heads_and_data_agree(built):
    found = heads(built.cfg.model)
    assert found
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        classes = classes_of(built.cfg[name].dataset, built.cfg.default_scope)
        assert {head['num_classes'] for head in found} == {len(classes)}, name


def test_weight_decay_spares_norms_and_position_tables(built):
    wrapper = build_optim_wrapper(built.model, built.cfg.optim_wrapper)
    decay = {parameter: group['weight_decay'] for group in wrapper.optimizer.param_groups
             for parameter in group['params']}
    trained = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    assert set(decay) == set(trained.values())
    spared = {f'{name}.{own}' for name, module in built.model.named_modules()
              if isinstance(module, NORMS) for own, _ in module.named_parameters(recurse=False)}
    spared |= {name for name in trained if POSITION_TABLE.fullmatch(name)}
    assert {name for name in spared & set(trained) if decay[trained[name]]} == set()
    weights = [name for name, p in trained.items() if p.ndim >= 2 and name not in spared]
    assert weights and all(decay[trained[name]] > 0 for name in weights)


def test_schedule_ends_with_the_training(built):
    loop = built.cfg.train_cfg
    last = loop.get('max_iters') or loop.max_epochs
    # A warm-up may count iterations where the training counts epochs.
    ends = [scheduler.get('end', last) for scheduler in built.cfg.param_scheduler
            if scheduler.get('by_epoch', True) == ('max_epochs' in loop)]
    assert max(ends) == last
    assert built.cfg.auto_scale_lr.base_batch_size > 0 and not built.cfg.auto_scale_lr.enable


def paint(cfg: Config, folder: Path, classes: int) -> np.ndarray:
    """A grey picture with an object of each of the first classes, as --show-dir draws it."""
    dataset = cfg.test_dataloader.dataset
    with DATASETS.switch_scope_and_registry('mmdet') as registry:
        meta = registry.get(dataset.type)._load_metainfo(dataset.get('metainfo'))
    with DefaultScope.overwrite_default_scope('mmdet'):
        visualizer = VISUALIZERS.build(dict(cfg.visualizer, name=folder.name, vis_backends=None))
    visualizer.dataset_meta = meta
    masks = torch.zeros(classes, 48, 32 * classes, dtype=torch.bool)
    for label in range(classes):
        masks[label, 8:40, 32 * label + 4:32 * label + 28] = True
    boxes = [[32. * label + 4, 8, 32 * label + 28, 40] for label in range(classes)]
    found = InstanceData(
        bboxes=torch.tensor(boxes),
        labels=torch.arange(classes), scores=torch.ones(classes), masks=masks)
    visualizer.add_datasample('made', np.full((48, 32 * classes, 3), 128, np.uint8),
                              DetDataSample(pred_instances=found), draw_gt=False,
                              out_file=str(folder / 'drawn.png'))
    return np.asarray(Image.open(folder / 'drawn.png').convert('RGB')).astype(int)


def test_detections_are_painted(built, tmp_path):
    if built.cfg.default_scope != 'mmdet':
        pytest.skip('segmentation')
    classes = min(2, len(classes_of(built.cfg.test_dataloader.dataset, 'mmdet')))
    drawn = paint(built.cfg, tmp_path, classes)
    for label in range(classes):
        assert (drawn[20:30, 32 * label + 12:32 * label + 20] != 128).any()
    assert (drawn[:4] == 128).all()


def test_model_runs(built):
    if built.cfg.default_scope != 'mmseg':
        pytest.skip('detectors run in the tests of detection')
    # Memory as it is found: shapes are looked at, not values. Last, because it moves the model.
    model = built.model.to_empty(device='cpu').eval()
    with torch.inference_mode():
        logits = model(torch.zeros(1, 3, 64, 96), mode='tensor')
    stride = 64 // logits.shape[2]
    assert logits.shape == (1, model.decode_head.num_classes, 64 // stride, 96 // stride)
    assert stride in (4, 8)


@pytest.mark.parametrize('size, drop_path', [('tiny', 0.3), ('small', 0.4), ('base', 0.6)])
def test_cswin_on_ade20k_is_the_authors_recipe(size, drop_path):
    cfg = load(ROOT / f'configs/upernet_cswin_{size}_ade20k.py')
    assert cfg.model.backbone.arch == size
    assert cfg.model.backbone.drop_path_rate == drop_path
    assert cfg.model.backbone.init_cfg.checkpoint == f'visattn://cswin_{size}_224'
    head, auxiliary = cfg.model.decode_head, cfg.model.auxiliary_head
    assert (head.type, head.channels, head.pool_scales) == ('UPerHead', 512, (1, 2, 3, 6))
    assert head.norm_cfg.type == 'SyncBN'
    assert (auxiliary.type, auxiliary.channels, auxiliary.in_index) == ('FCNHead', 256, 2)
    assert auxiliary.loss_decode.loss_weight == 0.4
    assert cfg.model.test_cfg.mode == 'whole'
    optimizer = cfg.optim_wrapper.optimizer
    assert optimizer == dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01)
    warm_up, poly = cfg.param_scheduler
    assert (warm_up.type, warm_up.start_factor, warm_up.end) == ('LinearLR', 1e-6, 1500)
    assert (poly.type, poly.power, poly.eta_min, poly.end) == ('PolyLR', 1., 0., 160000)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (160000, 16000)
    assert cfg.default_hooks.checkpoint.interval == 16000
    assert cfg.default_hooks.checkpoint.save_best == 'mIoU'
    assert cfg.train_dataloader.batch_size == 2
    assert cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.crop_size == cfg.model.data_preprocessor.size == (512, 512)
    channels = build(cfg).backbone.out_channels
    assert tuple(head.in_channels) == channels and auxiliary.in_channels == channels[2]


LISTS = f"""
_base_ = {str(ROOT / 'configs/mask_rcnn_cswin_tiny_coco.py')!r}
metainfo = dict(classes=('a', 'b'), palette=[[255, 0, 0], [0, 0, 255]])
test_dataloader = dict(dataset=dict(metainfo=metainfo))
"""


def test_a_palette_of_lists_is_painted(tmp_path):
    (tmp_path / 'lists.py').write_text(LISTS)
    drawn = paint(load(tmp_path / 'lists.py'), tmp_path, 2)
    red, blue = drawn[20:30, 12:20].mean((0, 1)), drawn[20:30, 44:52].mean((0, 1))
    assert red[0] > red[2] + 50 and blue[2] > blue[0] + 50


def test_palettes_are_tuples_for_every_reader():
    cfg = Config.fromfile(ROOT / 'configs/finetune_mask_rcnn_cswin_tiny_custom.py')
    assert {type(colour) for colour in cfg.test_dataloader.dataset.metainfo.palette} == {tuple}


@pytest.mark.parametrize('option, value', [
    ('test_dataloader.dataset.pipeline.1.scale=4096,4096', (4096, 4096)),
    ('test_dataloader.dataset.pipeline.1.scale=[4096,4096]', (4096, 4096)),
    ('model.data_preprocessor.size=64,96', (64, 96)),
    ('model.backbone.out_indices=0,1', (0, 1)),
    ('model.data_preprocessor.mean=1,2,3', [1, 2, 3]),
    ('train_dataloader.dataset.pipeline.3.cat_max_ratio=2', 2),
    ('test_dataloader.dataset.metainfo.palette=[[1,2,3],[4,5,6],[7,8,9]]',
     [(1, 2, 3), (4, 5, 6), (7, 8, 9)]),
])
def test_options_make_tuples_where_the_config_has_them(tmp_path, option, value, caplog):
    (tmp_path / 'mine.py').write_text(LISTS.replace('mask_rcnn_cswin_tiny_coco',
                                                    'upernet_cswin_tiny_ade20k')
                                      + 'model = dict(backbone=dict(out_indices=(0, 1, 2, 3)))')
    cfg = load(tmp_path / 'mine.py')
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    merge_options(cfg, parser.parse_args(['--cfg-options', option]).cfg_options)
    assert not caplog.messages
    node = cfg
    for part in option.partition('=')[0].split('.'):
        node = node[int(part) if part.isdigit() else part]
    assert node == value and type(node) is type(value)


@pytest.mark.parametrize('key', ['norm_cfg', 'norm_cfg.type', 'test_pipeline.1.scale'])
def test_an_option_that_changes_a_variable_alone_is_refused(key):
    cfg = load(ROOT / 'configs/upernet_cswin_tiny_ade20k.py')
    with pytest.raises(UserError, match=f'{key.split(".")[0]} is a variable of the config file'):
        merge_options(cfg, {key: 'BN'})
    merge_options(cfg, {'+norm_cfg.type': 'BN'})
    assert cfg.norm_cfg.type == 'BN'


@pytest.mark.parametrize('name', ['upernet_cswin_tiny_camvid', 'mask_rcnn_cswin_tiny_coco'])
def test_loaders_without_workers_start(monkeypatch, name, caplog):
    """num_workers=0 alone is enough: torch refuses persistent_workers and prefetch_factor then."""
    data = {'upernet_cswin_tiny_camvid': 'camvid', 'mask_rcnn_cswin_tiny_coco': 'coco'}[name]
    if not (SHARED / data).is_dir():
        pytest.skip(f'needs {data}')
    monkeypatch.setenv(f'{data.upper()}_ROOT', str(SHARED / data))
    cfg = load(ROOT / f'configs/{name}.py')
    cfg.train_dataloader.prefetch_factor = 4
    merge_options(cfg, {'train_dataloader.num_workers': 0})
    assert [line.split(': ')[1] for line in caplog.messages] == [
        'persistent_workers is switched off.', 'prefetch_factor is switched off.']
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        batch = next(iter(Runner.build_dataloader(cfg.train_dataloader, seed=0)))
    assert len(batch['inputs']) == cfg.train_dataloader.batch_size
    assert cfg.val_dataloader.persistent_workers


WEIGHTED = {
    'upernet_cswin_tiny_camvid': ('model.decode_head.loss_decode', 11),
    'mask_rcnn_cswin_tiny_coco': ('model.roi_head.bbox_head.loss_cls', 81),
    'retinanet_biformer_small_coco': ('model.bbox_head.loss_cls', 80),
    'cascade_mask_rcnn_cswin_tiny_coco': ('model.roi_head.bbox_head.2.loss_cls', 81),
}


@pytest.mark.parametrize('name', WEIGHTED)
def test_class_weights_are_counted_before_the_start(name, caplog):
    entry, outputs = WEIGHTED[name]
    for count in (outputs - 1, outputs, outputs + 1):
        cfg = load(ROOT / f'configs/{name}.py')
        merge_options(cfg, {f'+{entry}.class_weight': [1.0] * count})
        assert not caplog.messages
        if count == outputs:
            check_class_weights(cfg)
            continue
        with pytest.raises(UserError) as refused:
            check_class_weights(cfg)
        assert f'{entry}.class_weight has {count} weights' in str(refused.value)
        assert f'{outputs} outputs' in str(refused.value)


def test_wrong_class_weights_end_the_launcher(tmp_path):
    done = run('train', tmp_path, write_run(tmp_path), '--no-validate', '--cfg-options',
               'train_cfg.max_iters=2', '+model.decode_head.loss_decode.class_weight=1,1,1,1,1,1,1')
    assert done.code == 2 and 'Traceback' not in done.output
    assert 'class_weight has 7 weights' in done.output


def test_training_without_workers(tmp_path):
    done = run('train', tmp_path, write_run(tmp_path), '--no-validate', '--cfg-options',
               'train_cfg.max_iters=2', 'train_dataloader.num_workers=0',
               '+train_dataloader.persistent_workers=True')
    assert done.code == 0, done.output


def test_one_variable_moves_the_data(monkeypatch):
    monkeypatch.setenv('ADE20K_ROOT', '/elsewhere/ade')
    cfg = load(ROOT / 'configs/upernet_cswin_tiny_ade20k.py')
    roots = {cfg[f'{split}_dataloader'].dataset.data_root for split in ('train', 'val', 'test')}
    assert roots == {cfg.data_root} == {'/elsewhere/ade'}


@pytest.mark.parametrize('name, variable, folder, sizes, crop', [
    ('upernet_cswin_tiny_ade20k', 'ADE20K_ROOT', 'ade20k_sample', (3, 3, 3), (512, 512)),
    ('upernet_cswin_tiny_camvid', 'CAMVID_ROOT', 'camvid', (184, 26, 78), (320, 320)),
])
def test_pipelines_read_real_data(monkeypatch, name, variable, folder, sizes, crop):
    if not (SHARED / folder).is_dir():
        pytest.skip(f'needs {folder}')
    monkeypatch.setenv(variable, str(SHARED / folder))
    cfg = load(ROOT / f'configs/{name}.py')
    classes = cfg.model.decode_head.num_classes
    for split, size in zip(('train', 'val', 'test'), sizes, strict=True):
        with DefaultScope.overwrite_default_scope('mmseg'):
            dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
        assert len(dataset) == size
        sample = dataset[0]
        label = sample['data_samples'].gt_sem_seg.data[0]
        if split == 'train':
            # Smaller images are padded later, by the data preprocessor.
            assert all(a <= b for a, b in zip(label.shape, crop, strict=True))
            assert sample['inputs'].shape[1:] == label.shape
        values = set(np.unique(label).tolist()) - {255}
        assert values and max(values) < classes
