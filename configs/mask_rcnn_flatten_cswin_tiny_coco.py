"""Mask R-CNN on FLatten-CSWin-T, COCO, 1x (12 epochs): CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/mask_rcnn_flatten_cswin_tiny_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_flatten_cswin_tiny_coco.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://flatten_cswin_tiny). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run.
"""
_base_ = [
    './_base_/models/mask_rcnn_fpn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='FLattenCSWin',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://flatten_cswin_tiny')),
    neck=dict(in_channels=[64, 128, 256, 512]))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'positional_encoding': dict(decay_mult=0.)}))
