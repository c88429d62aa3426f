"""The demo: a small CSWin with a narrow UPerHead on rendered street scenes. The recipe is ours.

    make demo                          (renders the scenes, trains this, evaluates, draws pictures)
    SCENES_ROOT=work_dirs/demo/data/ade \
        python tools/train.py demo/configs/demo_upernet_cswin_scenes.py

Hardware: two CPU cores, a few minutes; no download, no pretrained weights.
Data: rendered by `python -m demo segmentation`, or by `python -m demo.scenes ROOT` in ROOT/ade.
Published: nothing. By us: 31.8 mIoU and 81.1 % of the pixels, where the best constant predictor has
1.2 and 22.7 (two CPU cores that were busy with other trainings: 9:35 in all, 6.5 minutes of CPU).
"""
_base_ = [
    '../../configs/_base_/models/upernet.py',
    '../../configs/_base_/datasets/segmentation.py',
    '../../configs/_base_/schedules/schedule_160k.py',
    '../../configs/_base_/default_runtime.py',
]
data_root = '{{$SCENES_ROOT:work_dirs/demo/data/ade}}'
# Whole scenes: in a small crop a grey wall, a grey road and a grey sky are the same.
crop_size = (192, 256)
# Classes of ADE20K that the scenes show; the files keep ADE20K's own indices, the other classes of
# ADE20K are ignored (demo.scenes.KINDS).
metainfo = dict(
    classes=('building', 'sky', 'tree', 'road', 'grass', 'sidewalk', 'person', 'earth', 'mountain',
             'plant', 'car', 'fence', 'signboard', 'bus', 'truck', 'streetlight', 'pole',
             'bicycle', 'traffic light'),
    palette=[(150, 110, 110), (120, 180, 230), (50, 130, 50), (110, 110, 115), (130, 200, 80),
             (215, 190, 160), (235, 60, 80), (150, 105, 60), (130, 130, 170), (170, 220, 110),
             (40, 90, 220), (200, 150, 220), (250, 230, 60), (0, 200, 200), (0, 130, 150),
             (250, 160, 40), (90, 50, 40), (160, 40, 170), (255, 90, 0)])

model = dict(
    data_preprocessor=dict(size=crop_size),
    backbone=dict(
        type='CSWin',
        arch=dict(embed_dim=32, depths=(2, 2, 4, 1), num_heads=(2, 2, 4, 8),
                  stripe_widths=(1, 2, 4, 4)),
        drop_path_rate=0.05),
    decode_head=dict(
        in_channels=[32, 64, 128, 256], channels=48, dropout_ratio=0., num_classes=19,
        norm_cfg=dict(type='BN')),
    auxiliary_head=dict(
        in_channels=128, channels=48, dropout_ratio=0., num_classes=19, norm_cfg=dict(type='BN')))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(256, 192), ratio_range=(1.0, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(
        type='ADE20KDataset',
        reduce_zero_label=True,
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=4,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        type='ADE20KDataset',
        reduce_zero_label=True,
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        metainfo=metainfo,
        pipeline=test_pipeline))
test_dataloader = val_dataloader

max_iters = 800
optim_wrapper = dict(
    optimizer=dict(lr=3e-3, betas=(0.9, 0.98), weight_decay=0.02),
    # From scratch, and short: one bad batch must not cost a tenth of the training.
    clip_grad=dict(max_norm=1.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=40),
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=40, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=200)
default_hooks = dict(
    logger=dict(interval=5),
    checkpoint=dict(interval=200, max_keep_ckpts=1, save_best=None))
auto_scale_lr = dict(base_batch_size=4)
