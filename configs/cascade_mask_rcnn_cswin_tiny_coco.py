"""Cascade Mask R-CNN on CSWin-T, COCO, 3x (36 epochs), short side 480–800.

    tools/dist_train.sh configs/cascade_mask_rcnn_cswin_tiny_coco.py 8
    tools/dist_test.sh configs/cascade_mask_rcnn_cswin_tiny_coco.py CHECKPOINT 8

The recipe is the paper's, which follows Swin's: stages of 4 convolutions and 1 linear layer with
SyncBN, boxes by class-agnostic GIoU on decoded coordinates. The authors released no code for
detection.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: ImageNet weights (visattn://cswin_tiny_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 52.5 box AP, 45.3 mask AP. By us: not run.
"""
_base_ = './mask_rcnn_cswin_tiny_3x_coco.py'
norm_cfg = dict(type='SyncBN', requires_grad=True)
# Of the three stages: how precise a box is to be, and the scale of its regression targets.
iou_thresholds = (0.5, 0.6, 0.7)
box_stds = ([0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067])
model = dict(
    type='CascadeRCNN',
    rpn_head=dict(
        loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1.0 / 9.0, loss_weight=1.0)),
    roi_head=dict(
        type='CascadeRoIHead',
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_head=[
            dict(
                type='ConvFCBBoxHead',
                num_shared_convs=4,
                num_shared_fcs=1,
                in_channels=256,
                conv_out_channels=256,
                fc_out_channels=1024,
                roi_feat_size=7,
                num_classes=80,
                bbox_coder=dict(
                    type='DeltaXYWHBBoxCoder', target_means=[0.] * 4, target_stds=stds),
                reg_class_agnostic=True,
                reg_decoded_bbox=True,
                norm_cfg=norm_cfg,
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type='GIoULoss', loss_weight=10.0))
            for stds in box_stds]),
    train_cfg=dict(
        rpn=dict(allowed_border=0),
        rpn_proposal=dict(max_per_img=2000),
        rcnn=[
            dict(
                assigner=dict(
                    type='MaxIoUAssigner', pos_iou_thr=threshold, neg_iou_thr=threshold,
                    min_pos_iou=threshold, match_low_quality=False, ignore_iof_thr=-1),
                sampler=dict(
                    type='RandomSampler', num=512, pos_fraction=0.25, neg_pos_ub=-1,
                    add_gt_as_proposals=True),
                mask_size=28,
                pos_weight=-1,
                debug=False)
            for threshold in iou_thresholds]))
