"""The detection demo: Mask R-CNN on a small CSWin, rendered street scenes. The recipe is ours.

    make demo-detection                (renders the scenes, trains this, evaluates, draws pictures)
    SCENES_ROOT=work_dirs/demo_detection/data/coco \
        python tools/train.py demo/configs/demo_mask_rcnn_cswin_scenes.py

Hardware: CPU, about 15 minutes of one core; no download, no pretrained weights.
Data: rendered by `python -m demo detection`, or by `python -m demo.scenes ROOT` in ROOT/coco.
Published: nothing. By us: box AP 13.1 (AP50 35.1), mask AP 12.4 (27.8) on the 32 validation scenes
after 2000 iterations of two images; 14.2 minutes of CPU, one thread. docs/detection.md has more.
"""
_base_ = [
    '../../configs/_base_/models/mask_rcnn_fpn.py',
    '../../configs/_base_/detection_runtime.py',
]
data_root = '{{$SCENES_ROOT:work_dirs/demo_detection/data/coco}}'
# The categories of COCO that the scenes show.
metainfo = dict(
    classes=('person', 'bicycle', 'car', 'bus', 'truck', 'traffic light', 'stop sign'),
    palette=[(235, 60, 80), (190, 80, 220), (60, 120, 250), (0, 190, 190), (250, 150, 40),
             (150, 220, 60), (250, 230, 60)])
# Of neck and heads, which start from random weights.
norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(
        type='CSWin',
        arch=dict(embed_dim=32, depths=(1, 2, 2, 1), num_heads=(2, 2, 4, 8),
                  stripe_widths=(1, 2, 4, 4)),
        drop_path_rate=0.05),
    # Small pictures, small objects: anchors of 12 to 96 pixels, narrow heads, few proposals.
    neck=dict(
        in_channels=[32, 64, 128, 256], out_channels=64, num_outs=4, norm_cfg=norm_cfg),
    rpn_head=dict(
        in_channels=64, feat_channels=64,
        anchor_generator=dict(scales=[3], strides=[4, 8, 16, 32])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            type='ConvFCBBoxHead', num_shared_convs=2, num_shared_fcs=1, in_channels=64,
            conv_out_channels=64, fc_out_channels=256, num_classes=7, reg_class_agnostic=True,
            norm_cfg=norm_cfg),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=7,
                       norm_cfg=norm_cfg)),
    train_cfg=dict(
        # One object in seven has an anchor that overlaps it by 0.7, three in four one by 0.5.
        rpn=dict(assigner=dict(pos_iou_thr=0.5)),
        rpn_proposal=dict(nms_pre=1000, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=200)))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=(256, 192), ratio_range=(0.9, 1.3), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(256, 192), keep_ratio=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(
    batch_size=2,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        metainfo=metainfo,
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    drop_last=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoDataset',
        data_root=data_root,
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
        metainfo=metainfo,
        test_mode=True,
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(
    type='CocoMetric',
    ann_file=data_root + '/annotations/instances_val2017.json',
    metric=['bbox', 'segm'])
test_evaluator = val_evaluator

max_iters = 2000
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1.5e-3, betas=(0.9, 0.98), weight_decay=0.02),
    # From scratch, and short: one bad batch must not cost a tenth of the training.
    clip_grad=dict(max_norm=1.),
    paramwise_cfg=dict(norm_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=100, end=max_iters),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
log_processor = dict(by_epoch=False)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=20, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=max_iters, max_keep_ckpts=1),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='DetVisualizationHook'))
auto_scale_lr = dict(enable=False, base_batch_size=2)
