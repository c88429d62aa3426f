"""Cascade Mask R-CNN on CSWin-B, COCO, 3x (36 epochs), short side 480–800.

    tools/dist_train.sh configs/cascade_mask_rcnn_cswin_base_coco.py 8
    tools/dist_test.sh configs/cascade_mask_rcnn_cswin_base_coco.py CHECKPOINT 8

The recipe is the paper's, which follows Swin's: stages of 4 convolutions and 1 linear layer with
SyncBN, boxes by class-agnostic GIoU on decoded coordinates. The authors released no code for
detection.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://cswin_base_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 53.9 box AP, 46.4 mask AP. By us: not run.
"""
_base_ = './cascade_mask_rcnn_cswin_tiny_coco.py'
model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.5,
        init_cfg=dict(checkpoint='visattn://cswin_base_224')),
    neck=dict(in_channels=[96, 192, 384, 768]))
