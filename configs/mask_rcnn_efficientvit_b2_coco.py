"""Mask R-CNN on EfficientViT-B2, COCO, 1x (12 epochs): CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/mask_rcnn_efficientvit_b2_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_efficientvit_b2_coco.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b2_r288). Another file, or none:
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
        type='EfficientViT',
        arch='b2',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://efficientvit_b2_r288')),
    neck=dict(in_channels=[48, 96, 192, 384]))
# The backbone's BatchNorm: 2 images are too few for its statistics.
sync_bn = 'torch'
