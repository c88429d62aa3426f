"""Cascade Mask R-CNN on CSWin-T, COCO, 3x (36 epochs), short side 480–800.

    tools/dist_train.sh configs/cascade_mask_rcnn_cswin_tiny_coco.py 8
    tools/dist_test.sh configs/cascade_mask_rcnn_cswin_tiny_coco.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights of the authors, downloaded at the start. To begin from a file of yours:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
from random weights: --cfg-options model.backbone.init_cfg=None
The recipe is the paper's, which follows Swin's; the authors released no code for detection.
Published by the authors (README of their code): 52.5 box AP, 45.3 mask AP. By us: not run.
"""
_base_ = [
    './_base_/models/cascade_mask_rcnn_fpn.py',
    './_base_/datasets/coco_instance_ms.py',
    './_base_/schedules/schedule_3x.py',
    './_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='CSWin',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://github.com/microsoft/CSWin-Transformer/releases/download/'
                       'v0.1.0/cswin_tiny_224.pth')),
    neck=dict(in_channels=[64, 128, 256, 512]))
