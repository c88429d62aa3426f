"""Mask R-CNN on EfficientViT-L1, COCO, 1x (12 epochs): CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/mask_rcnn_efficientvit_l1_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_efficientvit_l1_coco.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://efficientvit_l1_r224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run.
"""
_base_ = './mask_rcnn_efficientvit_b2_coco.py'
model = dict(
    backbone=dict(arch='l1', init_cfg=dict(checkpoint='visattn://efficientvit_l1_r224')),
    neck=dict(in_channels=[64, 128, 256, 512]))
