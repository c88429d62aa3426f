"""Mask R-CNN on CSWin-T, fine-tuned on objects of your own. The recipe is ours.

    python tools/check_dataset.py configs/finetune_mask_rcnn_cswin_tiny_custom.py
    python tools/train.py configs/finetune_mask_rcnn_cswin_tiny_custom.py

Change data_root and classes below; docs/finetuning.md has more.
Hardware: one GPU with 4 images; on less, train_dataloader.batch_size=2 and --auto-scale-lr.
Data: data_root/images/{train,val} and data_root/annotations/{train,val}.json in COCO's format.
Start: ImageNet weights (visattn://cswin_tiny_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None model.backbone.frozen_stages=-1
Published: nothing. By us: not run in full.
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
size = (1333, 800)
batch_size = 4
max_iters = 6000
# An address of the zoo (docs/zoo.md), the path of a file, or None: random weights.
weights = 'visattn://cswin_tiny_224'

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
train_dataloader = dict(batch_size=batch_size, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + '/annotations/val.json')
test_evaluator = val_evaluator
model = dict(
    backbone=dict(
        type='CSWin',
        arch='tiny',
        drop_path_rate=0.1,
        # 0: the stem stays as ImageNet left it; n: n stages as well; -1: all is trained.
        frozen_stages=0 if weights else -1,
        init_cfg=dict(type='Pretrained', checkpoint=weights) if weights else None),
    neck=dict(in_channels=[64, 128, 256, 512]),
    roi_head=dict(
        bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))))

optim_wrapper = dict(
    constructor='LayerDecayConstructor',
    # Half of the authors' rate for a quarter of their batch.
    optimizer=dict(lr=5e-5),
    # 25 blocks: the stem's rate is 0.26 of the heads'.
    paramwise_cfg=dict(layer_decay=0.95))
warmup, interval = max_iters // 12, max(1, max_iters // 12)
param_scheduler = [
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=warmup, end=max_iters)]
if warmup > 1:      # One of a single iteration would leave the rate at its start.
    param_scheduler.insert(
        0, dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup))
train_cfg = dict(
    _delete_=True, type='IterBasedTrainLoop', max_iters=max_iters, val_interval=interval)
log_processor = dict(by_epoch=False)
default_hooks = dict(
    logger=dict(log_metric_by_epoch=False), checkpoint=dict(by_epoch=False, interval=interval))
custom_hooks = [
    # Validated and saved are averaged weights: over about the last tenth of the training so far.
    dict(type='EMAHook', ema_type='MomentumAnnealingEMA', momentum=5e-4, gamma=10,
         update_buffers=True),
    # Ends after 6 validations in a row that are not better than the best by 0.001.
    dict(type='EarlyStopHook', monitor='coco/bbox_mAP', min_delta=0.001, patience=6),
]
auto_scale_lr = dict(enable=False, base_batch_size=4)
