"""A small segmentor (EfficientViT-B1), fine-tuned in minutes on a CPU. The recipe is ours.

    python tools/check_dataset.py configs/finetune_small_custom.py
    python tools/train.py configs/finetune_small_custom.py

Change data_root and classes below; docs/finetuning.md goes through it step by step.
Hardware: a laptop's CPU, in minutes.
Data: data_root/{images,masks}/{train,val}; masks are PNGs of class indices, 255 where none.
Start: ImageNet weights (visattn://efficientvit_b1_r224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None model.backbone.frozen_stages=-1
Published: nothing. By us: 20.4 mIoU on CamVid from random weights; 4.0 minutes of CPU time of one
core.
"""
_base_ = [
    './_base_/models/efficientvit_seg.py',
    './_base_/datasets/custom_segmentation.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
# Yours to set, each once.
data_root = 'data/custom'
# The names of the mask values 0, 1, 2, ... in this order.
classes = ['background', 'object']
# Height and width of the crops to train on. The short side of a whole image is brought to the first
# of the two, in training to half up to twice of it.
size = (192, 192)
batch_size = 4
max_iters = 300
# An address of the zoo (docs/zoo.md), the path of a file, or None: random weights.
weights = 'visattn://efficientvit_b1_r224'

# All that follows is made from these.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(4 * size[0], size[0]), ratio_range=(0.5, 2.0),
         keep_ratio=True),
    dict(type='RandomCrop', crop_size=size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(4 * size[0], size[0]), keep_ratio=True),
    # After Resize: the truth keeps its size, predictions are resized to it.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
data = dict(data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=batch_size, num_workers=2, dataset=dict(pipeline=train_pipeline, **data))
val_dataloader = dict(num_workers=1, dataset=dict(pipeline=test_pipeline, **data))
test_dataloader = val_dataloader
model = dict(
    data_preprocessor=dict(size=size),
    backbone=dict(
        arch='b1',
        drop_path_rate=0.05,
        # 0: the stem stays as ImageNet left it; n: n stages as well; -1: all is trained.
        frozen_stages=0 if weights else -1,
        init_cfg=dict(type='Pretrained', checkpoint=weights) if weights else None),
    decode_head=dict(
        in_channels=[64, 128, 256], width=64, depth=3, expand_ratio=4, block='mbconv',
        act='hardswish', num_classes=len(classes)))

optim_wrapper = dict(
    constructor='LayerDecayConstructor',
    optimizer=dict(lr=1e-3),
    # 14 blocks: the stem's rate is 0.21 of the head's.
    paramwise_cfg=dict(layer_decay=0.9))
warmup, interval = max_iters // 20, max(1, max_iters // 5)
param_scheduler = [
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=warmup, end=max_iters)]
if warmup > 1:      # One of a single iteration would leave the rate at its start.
    param_scheduler.insert(
        0, dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=warmup))
train_cfg = dict(max_iters=max_iters, val_interval=interval)
default_hooks = dict(logger=dict(interval=10), checkpoint=dict(interval=interval))
auto_scale_lr = dict(enable=False, base_batch_size=4)
