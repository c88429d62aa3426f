"""Mask R-CNN on BiFormer-S, COCO, 1x (12 epochs): the authors' recipe.

    tools/dist_train.sh configs/mask_rcnn_biformer_small_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_biformer_small_coco.py CHECKPOINT 8

The authors trained in float16: add --amp float16.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: random weights (the link to biformer_small_best.pth was reported dead in 2026). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published by the authors (README of their code): 47.8 box AP, 43.2 mask AP (48.1, 43.6 run again).
By us: not run.
"""
_base_ = [
    './_base_/models/mask_rcnn_fpn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='BiFormer',
        arch='small',
        n_win=16,
        drop_path_rate=0.2,
        init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512]))
