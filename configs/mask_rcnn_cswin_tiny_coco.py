"""Mask R-CNN on CSWin-T, COCO, 1x (12 epochs): the authors' recipe.

    tools/dist_train.sh configs/mask_rcnn_cswin_tiny_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_cswin_tiny_coco.py CHECKPOINT 8

The recipe is the paper's; the authors released no code for detection.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://cswin_tiny_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (arXiv 2107.00652): 46.7 box AP, 42.2 mask AP. By us: not run.
"""
_base_ = [
    './_base_/models/mask_rcnn_fpn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/detection_runtime.py',
]
model = dict(
    backbone=dict(
        type='CSWin',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://cswin_tiny_224')),
    neck=dict(in_channels=[64, 128, 256, 512]))
