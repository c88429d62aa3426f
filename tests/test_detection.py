"""Detectors of mmdet on our backbones: odd batches, frozen stages, nothing to find, crowds."""
import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from torch import nn

import visattn_dense  # noqa: F401
from demo.__main__ import main as demo
from tests.tiny_runs import ROOT, run
from visattn_dense.visualization.instances import (
    InstanceRow,
    Instances,
    draw_instance_sheet,
    paint_instances,
)

COCO = ROOT.parent / 'shared/data/coco'
register_all_modules(init_default_scope=False)

TINY = {
    'CSWin': dict(type='CSWin', arch=dict(
        embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8), stripe_widths=(1, 2, 7, 7))),
    'FLattenCSWin': dict(type='FLattenCSWin', arch=dict(
        embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8), stripe_widths=(1, 2, 7, 7))),
    'BiFormer': dict(type='BiFormer', n_win=4, topks=(1, 2, 4, -2), head_dim=16, arch=dict(
        embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), mlp_ratio=2, overlapping=True)),
    'EfficientViT': dict(type='EfficientViT', arch='b0'),
    'T2TViT': dict(type='T2TViT', arch='7'),
}
DETECTORS = {'mask_rcnn_fpn': '_base_/models/mask_rcnn_fpn',
             'cascade_mask_rcnn': 'cascade_mask_rcnn_cswin_tiny_coco',
             'retinanet_fpn': '_base_/models/retinanet_fpn'}


def settings(name: str, backbone: dict | None = None, **changes) -> dict:
    """The model of one of the project's configs with narrow heads, on a tiny backbone."""
    cfg = Config(Config.fromfile(ROOT / f'configs/{DETECTORS[name]}.py').model.to_dict())
    maps = {key: value for key, value in cfg.get('backbone', {}).items() if key == 'out_indices'}
    cfg.backbone = dict(copy.deepcopy(backbone or TINY['CSWin']), **maps)
    with DefaultScope.overwrite_default_scope('mmdet'):
        channels = MODELS.build(cfg.backbone).out_channels
    narrow = {'neck.in_channels': list(channels), 'neck.out_channels': 16}
    if name == 'retinanet_fpn':
        narrow |= {'bbox_head.in_channels': 16, 'bbox_head.feat_channels': 16,
                   'bbox_head.stacked_convs': 1, 'bbox_head.num_classes': 3}
    else:
        narrow |= {'rpn_head.in_channels': 16, 'rpn_head.feat_channels': 16,
                   'roi_head.bbox_roi_extractor.out_channels': 16,
                   'roi_head.mask_roi_extractor.out_channels': 16,
                   'roi_head.mask_head.in_channels': 16, 'roi_head.mask_head.num_convs': 1,
                   'roi_head.mask_head.conv_out_channels': 16,
                   'roi_head.mask_head.num_classes': 3,
                   'train_cfg.rpn_proposal.max_per_img': 50, 'test_cfg.rpn.max_per_img': 50}
        heads = cfg.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.update(in_channels=16, fc_out_channels=32, num_classes=3)
            if 'conv_out_channels' in head:
                head.update(conv_out_channels=16)
    cfg.merge_from_dict(narrow | changes)
    return cfg.to_dict()


def build(name: str, backbone: dict | None = None, **changes) -> nn.Module:
    """The detector of `settings`."""
    with DefaultScope.overwrite_default_scope('mmdet'):
        return revert_sync_batchnorm(MODELS.build(
            Config(dict(model=settings(name, backbone, **changes))).model))


def sample(height: int, width: int, boxes: list, crowds: list = ()) -> dict:
    """An image of noise with objects and crowd regions, as the pipelines pack them."""
    data = DetDataSample(metainfo=dict(
        img_shape=(height, width), ori_shape=(height, width), scale_factor=(1., 1.), img_id=0))

    def instances(found: list) -> InstanceData:
        masks = np.zeros((len(found), height, width), np.uint8)
        for mask, (x1, y1, x2, y2) in zip(masks, found, strict=True):
            mask[y1:y2, x1:x2] = 1
        return InstanceData(bboxes=torch.tensor(found, dtype=torch.float32).reshape(-1, 4),
                            labels=torch.arange(len(found)) % 3,
                            masks=BitmapMasks(masks, height, width))

    data.gt_instances, data.ignored_instances = instances(boxes), instances(list(crowds))
    return dict(inputs=torch.randint(0, 256, (3, height, width), dtype=torch.uint8),
                data_samples=data)


def losses_of(model: nn.Module, samples: list[dict]) -> torch.Tensor:
    """The sum of the losses of a batch in training mode, each of them finite."""
    model.train()
    with DefaultScope.overwrite_default_scope('mmdet'):
        data = model.data_preprocessor(pseudo_collate(samples), True)
        losses = model(**data, mode='loss')
    parts = {name: sum(value) if isinstance(value, list) else value
             for name, value in losses.items() if 'loss' in name}
    assert parts and all(value.isfinite().all() for value in parts.values()), parts
    return sum(value.sum() for value in parts.values())


BOX = [10, 12, 41, 37]


@pytest.mark.parametrize('backbone', TINY)
def test_a_padded_batch_of_unlike_images_trains_every_parameter(backbone: str):
    model = build('mask_rcnn_fpn', TINY[backbone])
    loss = losses_of(model, [sample(61, 101, [BOX, [50, 5, 90, 60]]), sample(97, 43, [BOX])])
    loss.backward()
    assert [name for name, p in model.named_parameters()
            if p.requires_grad and p.grad is None] == []
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('boxes, crowds', [
    ([], []), ([BOX], [[0, 40, 60, 60]]), ([], [[0, 0, 60, 60]])],
    ids=['no object', 'object and crowd', 'crowd only'])
def test_one_image_with_any_objects_trains(name: str, boxes: list, crowds: list):
    model = build(name)
    losses_of(model, [sample(64, 75, boxes, crowds)]).backward()
    grads = [p.grad for p in model.backbone.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize('name', DETECTORS)
def test_an_image_without_objects_beside_one_with(name: str):
    losses_of(build(name), [sample(64, 75, []), sample(75, 64, [BOX])]).backward()


@pytest.mark.parametrize('backbone', TINY)
@pytest.mark.parametrize('frozen', [0, 2, 4])
def test_frozen_stages_get_no_gradient_and_the_rest_does(backbone: str, frozen: int):
    model = build('mask_rcnn_fpn', dict(TINY[backbone], frozen_stages=frozen))
    before = copy.deepcopy(model.backbone.state_dict())
    losses_of(model, [sample(64, 96, [BOX])]).backward()
    own = [module for group in model.backbone.stage_modules()[:frozen + 1] for module in group]
    fixed = {id(p) for module in own for p in module.parameters()}
    assert fixed and not any(p.requires_grad for p in model.parameters() if id(p) in fixed)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    assert any(p.requires_grad for p in model.backbone.parameters()) == (frozen < 4)
    for module in own:
        assert not module.training
    # Statistics of frozen BatchNorm stay as they were.
    names = {id(b): n for n, b in model.backbone.named_buffers()}
    for module in own:
        for buffer in module.buffers():
            assert torch.equal(buffer, before[names[id(buffer)]])


@pytest.mark.parametrize('name', DETECTORS)
@pytest.mark.parametrize('height, width', [(33, 47), (128, 64)])
def test_predictions_lie_in_the_image_that_came(name: str, height: int, width: int):
    model = build(name, **{
        'test_cfg.score_thr' if name == 'retinanet_fpn' else 'test_cfg.rcnn.score_thr': 0.}).eval()
    with DefaultScope.overwrite_default_scope('mmdet'), torch.inference_mode():
        (found,) = model.test_step(pseudo_collate([sample(height, width, [])]))
    boxes = found.pred_instances.bboxes
    assert len(boxes) and boxes.min() >= 0
    assert boxes[:, 0::2].max() <= width and boxes[:, 1::2].max() <= height
    if 'mask' in name:
        assert found.pred_instances.masks.shape[1:] == (height, width)


@pytest.mark.parametrize('height, width', [(800, 1333), (1333, 800), (799, 1201)])
def test_full_size_of_coco_passes_the_pyramid(height: int, width: int):
    model = build('mask_rcnn_fpn').eval()
    with torch.inference_mode(), DefaultScope.overwrite_default_scope('mmdet'):
        batch = model.data_preprocessor(pseudo_collate([sample(height, width, [])]))['inputs']
        maps = model.extract_feat(batch)
    padded = [math.ceil(side / 32) * 32 for side in (height, width)]
    assert [tuple(m.shape[2:]) for m in maps] == [
        tuple(math.ceil(side / stride) for side in padded) for stride in (4, 8, 16, 32, 64)]


def test_retinanet_trains_every_parameter():
    model = build('retinanet_fpn', TINY['BiFormer'])
    losses_of(model, [sample(61, 101, [BOX])]).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


RECIPES = [path.stem for path in sorted((ROOT / 'configs').glob('*_coco.py'))]


@pytest.mark.parametrize('stem', RECIPES)
def test_coco_configs_follow_the_recipe(stem: str):
    cfg = Config.fromfile(ROOT / f'configs/{stem}.py')
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ('AdamW', 1e-4, 0.05)
    warm_up, steps = cfg.param_scheduler
    assert (warm_up.type, warm_up.by_epoch, warm_up.end) == ('LinearLR', False, 500)
    thrice = '_3x_' in stem or stem.startswith('cascade')
    assert cfg.train_cfg.max_epochs == steps.end == (36 if thrice else 12)
    assert steps.milestones == ([27, 33] if thrice else [8, 11])
    (resize,) = (step for step in cfg.train_dataloader.dataset.pipeline if 'Resize' in step.type)
    if thrice:
        assert [min(scale) for scale in resize.scales] == list(range(480, 801, 32))
        assert {max(scale) for scale in resize.scales} == {1333}
    else:
        assert resize.scale == (1333, 800)
    assert (cfg.train_dataloader.batch_size, cfg.auto_scale_lr.base_batch_size) == (2, 16)
    paths = {'cswin_tiny': 0.1, 'cswin_small': 0.3, 'cswin_base': 0.5, 'biformer_small': 0.2,
             'biformer_base': 0.3}
    for name, rate in paths.items():
        if name in stem and 'flatten' not in stem:
            assert cfg.model.backbone.drop_path_rate == rate
    assert cfg.model.backbone.get('n_win') == (16 if 'biformer' in stem else None)


def test_every_config_of_the_list_is_there():
    backbones = ('cswin_tiny', 'cswin_small', 'cswin_base', 'biformer_small', 'biformer_base',
                 'flatten_cswin_tiny', 'efficientvit_b2', 'efficientvit_l1', 't2t_vit_14')
    sizes = ('tiny', 'small', 'base')
    assert set(RECIPES) == {
        *(f'mask_rcnn_{name}_coco' for name in backbones),
        *(f'mask_rcnn_cswin_{size}_3x_coco' for size in sizes),
        *(f'cascade_mask_rcnn_cswin_{size}_coco' for size in sizes),
        *(f'retinanet_biformer_{size}_coco' for size in sizes[1:])}


def test_neck_takes_what_the_backbone_gives():
    for stem in RECIPES:
        cfg = Config.fromfile(ROOT / f'configs/{stem}.py').model
        backbone = dict(cfg.backbone, init_cfg=None)
        with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'):
            model = MODELS.build(backbone)
        assert list(model.out_channels) == list(cfg.neck.in_channels), stem


@pytest.fixture
def coco() -> Path:
    if not COCO.is_dir():
        pytest.skip('needs the COCO sample')
    return COCO


def test_all_real_images_load_with_crowds_apart(coco: Path, monkeypatch):
    monkeypatch.setenv('COCO_ROOT', str(coco))
    cfg = Config.fromfile(ROOT / 'configs/mask_rcnn_cswin_tiny_3x_coco.py')
    book = json.loads((coco / 'annotations/instances_train2017.json').read_text())
    crowds = {a['image_id'] for a in book['annotations'] if a['iscrowd']}
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == len(book['images']) == 45
    with_crowd = set()
    for i in range(0, len(dataset), 6):
        data = dataset[i]['data_samples']
        assert len(data.gt_instances.masks) == len(data.gt_instances.labels) > 0
        assert min(data.img_shape) <= 800 and max(data.img_shape) <= 1333
        if len(data.ignored_instances):
            with_crowd.add(data.img_id)
    assert with_crowd <= crowds


SMALL_ON_REAL = """
_base_ = [{base!r}]
model = dict(
    backbone=dict(init_cfg=None, arch=dict(
        _delete_=True, embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8),
        stripe_widths=(1, 2, 7, 7))),
    neck=dict(in_channels=[16, 32, 64, 128]),
    roi_head=dict(bbox_head=dict(fc_out_channels=32), mask_head=dict(num_convs=1)),
    train_cfg=dict(rpn_proposal=dict(max_per_img=40), rcnn=dict(sampler=dict(num=16))),
    test_cfg=dict(rpn=dict(max_per_img=40), rcnn=dict(score_thr=0.)))
data = dict(ann_file={books!r}, data_prefix=dict(img='train2017/'))
resize = dict(type='Resize', scale=(128, 96), keep_ratio=True)
load = [dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True)]
alone = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(dataset=dict(
    pipeline=[*load, resize, dict(type='RandomFlip', prob=0.5), dict(type='PackDetInputs')],
    filter_cfg=dict(filter_empty_gt=False), **data), **alone)
test_dataloader = dict(dataset=dict(
    pipeline=[load[0], resize, load[1], dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))], **data), **alone)
test_evaluator = dict(ann_file={books!r})
train_cfg = dict(max_epochs=1)
"""


def test_training_and_testing_on_real_images(coco: Path, tmp_path: Path):
    """Two images, one with a crowd, through the launcher; the checkpoint is evaluated."""
    book = json.loads((coco / 'annotations/instances_train2017.json').read_text())
    chosen = {204805, 425988}
    book['images'] = [image for image in book['images'] if image['id'] in chosen]
    # One more, in which nothing is labelled.
    book['images'].append(dict(id=1, file_name='000000216794.jpg', width=640, height=480))
    book['annotations'] = [a for a in book['annotations'] if a['image_id'] in chosen]
    (tmp_path / 'few.json').write_text(json.dumps(book))
    config = tmp_path / 'real.py'
    config.write_text(SMALL_ON_REAL.format(
        base=str(ROOT / 'configs/mask_rcnn_cswin_tiny_coco.py'), books=str(tmp_path / 'few.json')))
    done = run('train', tmp_path, config, '--no-validate', COCO_ROOT=str(coco))
    assert done.code == 0, done.output
    done = run('test', tmp_path, config, tmp_path / 'work/epoch_1.pth', COCO_ROOT=str(coco))
    assert done.code == 0, done.output
    assert 'coco/segm_mAP' in done.output


def one_object(height: int, width: int, **more) -> Instances:
    masks = np.zeros((1, height, width), bool)
    masks[0, 2:6, 3:9] = True
    return Instances(masks, np.array([[3., 2., 9., 6.]]), np.array([1]), **more)


def test_painted_objects_have_their_class_colour():
    image = np.full((12, 16, 3), 100, np.uint8)
    palette = [(255, 0, 0), (0, 0, 200)]
    page = np.array(paint_instances(image, one_object(12, 16), palette))
    assert page.shape == image.shape
    assert page[0, 0].tolist() == [100, 100, 100] and page[4, 5].tolist() == [50, 50, 150]
    crowd = np.array(paint_instances(image, one_object(12, 16, crowd=np.array([True])), palette,
                                     width=160))
    assert crowd.shape == (120, 160, 3) and crowd[45, 55].tolist() == [100, 100, 100]


def test_instance_sheet_refuses_what_does_not_fit():
    image = np.zeros((12, 16, 3), np.uint8)
    row = InstanceRow(image, one_object(12, 16), one_object(12, 15))
    with pytest.raises(ValueError, match='12, 15'):
        draw_instance_sheet([row], ['a', 'b'], [(1, 2, 3), (4, 5, 6)])
    with pytest.raises(ValueError, match='at least one row'):
        draw_instance_sheet([], [], [])


def test_demo_in_miniature(tmp_path: Path, capsys, monkeypatch):
    """The whole of it, with a training too short to learn anything."""
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    words = ['--iters', '4', '--train-scenes', '4', '--val-scenes', '2']
    assert demo(['detection', '--work-dir', str(tmp_path / 'd'), *words]) == 0
    output = capsys.readouterr().out
    for part in ('1/3', '3/3', 'boxes', 'masks', 'AP50', '4/4  loss', 'Done in', 'val_4.jpg'):
        assert part in output, output
    assert (tmp_path / 'd/run/val_4.jpg').stat().st_size > 10_000
    record = json.loads((tmp_path / 'd/run/demo.json').read_text())
    assert {'bbox_mAP', 'segm_mAP', 'seconds'} <= set(record)


def test_demo_says_what_is_wrong(tmp_path: Path, capsys):
    assert demo(['detection', '--work-dir', str(tmp_path), '--iters', '1']) == 2
    assert capsys.readouterr().err == 'error: --iters is at least 4, got 1\n'
    assert not list(tmp_path.iterdir())
