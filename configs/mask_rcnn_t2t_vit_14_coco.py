"""Mask R-CNN on T2T-ViT-14, COCO, 1x (12 epochs): CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/mask_rcnn_t2t_vit_14_coco.py 8
    tools/dist_test.sh configs/mask_rcnn_t2t_vit_14_coco.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://t2t_vit_14). Another file, or none:
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
        type='T2TViT',
        arch='14',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://t2t_vit_14')),
    neck=dict(in_channels=[384, 384, 384, 384]))
