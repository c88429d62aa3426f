"""Mask R-CNN on CSWin-T, COCO, 3x (36 epochs), short side 480–800: the authors' recipe.

    tools/dist_train.sh configs/mask_rcnn_cswin_tiny_3x_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_cswin_tiny_3x_coco.py CHECKPOINT 8

The recipe is the paper's; the authors released no code for detection.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://cswin_tiny_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (arXiv 2107.00652): 49.0 box AP, 43.6 mask AP. By us: not run.
"""
_base_ = './mask_rcnn_cswin_tiny_coco.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomChoiceResize', keep_ratio=True,
         scales=[(1333, short) for short in range(480, 801, 32)]),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=500),
    dict(type='MultiStepLR', by_epoch=True, begin=0, end=36, milestones=[27, 33], gamma=0.1),
]
train_cfg = dict(max_epochs=36)
