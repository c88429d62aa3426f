"""A small Mask R-CNN (EfficientViT-B1), fine-tuned in minutes on a CPU. The recipe is ours.

    python tools/check_dataset.py configs/finetune_small_detector_custom.py
    python tools/train.py configs/finetune_small_detector_custom.py

Change data_root and classes below; docs/finetuning.md has more.
Hardware: a laptop's CPU, in minutes.
Data: data_root/images/{train,val} and data_root/annotations/{train,val}.json in COCO's format.
Start: ImageNet weights (visattn://efficientvit_b1_r224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None model.backbone.frozen_stages=-1
Published: nothing. By us: box AP 4.8 (AP50 15.0) on the demo's street scenes from random weights;
13.6 minutes of CPU time of one core.
"""
_base_ = [
    './_base_/models/mask_rcnn_fpn.py',
    './_base_/datasets/custom_instances.py',
    './_base_/schedules/schedule_1x.py',
    './_base_/detection_runtime.py',
]
# Yours to set, each once.
data_root = 'data/custom'
# The names of the categories, in the order in which the annotation files list them.
classes = ['object']
# The longest and the shortest side of an image at most; in training the short side varies from 0.6
# of that.
size = (320, 240)
batch_size = 4
max_iters = 500
# An address of the zoo (docs/zoo.md), the path of a file, or None: random weights.
weights = 'visattn://efficientvit_b1_r224'

# All that follows is made from these.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='RandomResize', scale=[(size[0], size[1] * 3 // 5), size], keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=size, keep_ratio=True),
    # After Resize: the truth keeps its size, predictions are brought back to it.
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
data = dict(data_root=data_root, metainfo=dict(
    classes=classes,
    palette=[(67 * i % 256, (113 * i + 85) % 256, (181 * i + 170) % 256)
             for i in range(len(classes))]))
train_dataloader = dict(
    batch_size=batch_size, num_workers=2, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/val.json')
test_evaluator = val_evaluator
# Of neck and heads, which start from random weights.
norm_cfg = dict(type='BN')
model = dict(
    backbone=dict(
        type='EfficientViT',
        arch='b1',
        drop_path_rate=0.05,
        # 0: the stem stays as ImageNet left it; n: n stages as well; -1: all is trained.
        frozen_stages=0 if weights else -1,
        init_cfg=dict(type='Pretrained', checkpoint=weights) if weights else None),
    # A quarter of the usual width; anchors of 16 to 256 pixels; few proposals.
    neck=dict(in_channels=[32, 64, 128, 256], out_channels=64, norm_cfg=norm_cfg),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=64),
        bbox_head=dict(
            type='ConvFCBBoxHead', num_shared_convs=2, num_shared_fcs=1, in_channels=64,
            conv_out_channels=64, fc_out_channels=256, num_classes=len(classes),
            reg_class_agnostic=True, norm_cfg=norm_cfg),
        mask_roi_extractor=dict(out_channels=64),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64,
                       num_classes=len(classes), norm_cfg=norm_cfg)),
    train_cfg=dict(
        # Small objects seldom overlap an anchor by 0.7.
        rpn=dict(assigner=dict(pos_iou_thr=0.5)),
        rpn_proposal=dict(nms_pre=1000, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=1000, max_per_img=200)))

optim_wrapper = dict(
    constructor='LayerDecayConstructor',
    optimizer=dict(lr=1e-3),
    # Short: one bad batch must not cost a tenth of the training.
    clip_grad=dict(max_norm=1.),
    # 14 blocks: the stem's rate is 0.21 of the heads'.
    paramwise_cfg=dict(layer_decay=0.9))
warmup, interval = max_iters // 20, max(1, max_iters // 5)
param_scheduler = [
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=warmup, end=max_iters)]
if warmup > 1:      # One of a single iteration would leave the rate at its start.
    param_scheduler.insert(
        0, dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup))
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=interval)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(interval=10, log_metric_by_epoch=False),
    checkpoint=dict(by_epoch=False, interval=interval))
auto_scale_lr = dict(enable=False, base_batch_size=4)
