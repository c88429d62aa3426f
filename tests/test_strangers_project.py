"""The registry seen from somebody else's project: their config and OpenMMLab's own launcher."""
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

BACKBONE = """
    backbone=dict(_delete_=True, type='CSWin', arch=dict(
        embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 2, 4, 4), stripe_widths=(1, 2, 7, 7))),
"""

SEGMENTATION = """
_base_ = ['mmseg::_base_/models/upernet_swin.py', 'mmseg::_base_/default_runtime.py']
custom_imports = dict(imports=['visattn_dense'])
norm_cfg = dict(type='BN')
model = dict(
    data_preprocessor=dict(size=(32, 32)),
    pretrained=None,
""" + BACKBONE + """
    decode_head=dict(in_channels=[16, 32, 64, 128], channels=8, num_classes=3, norm_cfg=norm_cfg),
    auxiliary_head=dict(in_channels=64, channels=8, num_classes=3, norm_cfg=norm_cfg))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
            dict(type='PackSegInputs')]
dataset = dict(type='BaseSegDataset', data_root='data', img_suffix='.png',
               data_prefix=dict(img_path='images', seg_map_path='labels'), pipeline=pipeline,
               metainfo=dict(classes=('a', 'b', 'c'), palette=[[0] * 3, [90] * 3, [180] * 3]))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dataset,
                        sampler=dict(type='InfiniteSampler'))
val_dataloader = dict(batch_size=1, num_workers=0, dataset=dataset,
                      sampler=dict(type='DefaultSampler'))
val_evaluator = dict(type='IoUMetric')
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
val_cfg = dict(type='ValLoop')
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""

DETECTION = """
_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py', 'mmdet::_base_/default_runtime.py']
custom_imports = dict(imports=['visattn_dense'])
model = dict(
""" + BACKBONE + """
    neck=dict(in_channels=[16, 32, 64, 128], out_channels=8),
    bbox_head=dict(num_classes=2, in_channels=8, feat_channels=8, stacked_convs=1))
pipeline = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape'))]
dataset = dict(type='CocoDataset', data_root='data', ann_file='coco.json',
               data_prefix=dict(img='images'), pipeline=pipeline,
               metainfo=dict(classes=('a', 'b')))
train_dataloader = dict(batch_size=2, num_workers=0, dataset=dataset,
                        sampler=dict(type='DefaultSampler', shuffle=True))
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
default_hooks = dict(logger=dict(type='LoggerHook', interval=1))
"""


def write_data(root: Path) -> None:
    """Two random images, their label maps, and a box on each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for folder in ('images', 'labels'):
        (root / folder).mkdir(parents=True)
    for i in range(2):
        cv2.imwrite(str(root / f'images/{i}.png'), rng.integers(0, 255, (40, 50, 3), np.uint8))
        cv2.imwrite(str(root / f'labels/{i}.png'), rng.integers(0, 3, (40, 50), np.uint8))
        images.append(dict(id=i, file_name=f'{i}.png', height=40, width=50))
        annotations.append(dict(id=i, image_id=i, category_id=i, bbox=[5, 5, 30, 20], area=600,
                                iscrowd=0))
    (root / 'coco.json').write_text(json.dumps(dict(
        images=images, annotations=annotations,
        categories=[dict(id=0, name='a'), dict(id=1, name='b')])))


@pytest.mark.parametrize('project, config, expected', [
    ('mmseg', SEGMENTATION, 'mIoU'),
    ('mmdet', DETECTION, 'loss_bbox'),
])
def test_openmmlabs_own_launcher_trains_our_backbone(project, config, expected, tmp_path):
    package = __import__(project)
    launcher = Path(package.__file__).parent / '.mim' / 'tools' / 'train.py'
    if not launcher.exists():
        pytest.skip(f'this installation of {project} does not carry its launcher')
    write_data(tmp_path / 'data')
    (tmp_path / 'config.py').write_text(config)
    done = subprocess.run([sys.executable, launcher, 'config.py', '--work-dir', 'out'],
                          cwd=tmp_path, text=True, capture_output=True,
                          env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'CSWin' in done.stdout + done.stderr
    assert expected in done.stdout + done.stderr
    assert list((tmp_path / 'out').glob('*.pth'))
