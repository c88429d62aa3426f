"""Mask R-CNN on CSWin-S, COCO, 1x (12 epochs): the authors' recipe.

    tools/dist_train.sh configs/mask_rcnn_cswin_small_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_cswin_small_coco.py CHECKPOINT 8

The recipe is the paper's; the authors released no code for detection.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://cswin_small_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (arXiv 2107.00652): 47.9 box AP, 43.2 mask AP. By us: not run.
"""
_base_ = './mask_rcnn_cswin_tiny_coco.py'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.3,
        init_cfg=dict(checkpoint='visattn://cswin_small_224')))
