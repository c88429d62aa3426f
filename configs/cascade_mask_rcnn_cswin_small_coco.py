"""Cascade Mask R-CNN on CSWin-S, COCO, 3x (36 epochs), short side 480–800.

    tools/dist_train.sh configs/cascade_mask_rcnn_cswin_small_coco.py 8
    tools/dist_test.sh configs/cascade_mask_rcnn_cswin_small_coco.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights of the authors, downloaded at the start. To begin from a file of yours:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
from random weights: --cfg-options model.backbone.init_cfg=None
The recipe is the paper's, which follows Swin's; the authors released no code for detection.
Published by the authors (README of their code): 53.7 box AP, 46.4 mask AP. By us: not run.
"""
_base_ = './cascade_mask_rcnn_cswin_tiny_coco.py'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.3,
        init_cfg=dict(checkpoint='visattn://cswin_small_224')))
