"""Cityscapes (19 classes), mmseg's pipeline, 2 crops of 512×1024 per GPU; tested at 1024×2048.

The folder is `data/cityscapes`, with leftImg8bit/{train,val} and gtFine/{train,val}, the labels
converted to *_labelTrainIds.png; the environment variable CITYSCAPES_ROOT names another:

    CITYSCAPES_ROOT=/datasets/cityscapes tools/dist_train.sh CONFIG 8
"""
_base_ = './segmentation.py'
data_root = '{{$CITYSCAPES_ROOT:data/cityscapes}}'
crop_size = (512, 1024)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(2048, 1024), ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 1024), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(dataset=dict(
    type='CityscapesDataset',
    data_root=data_root,
    data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
    pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(
    type='CityscapesDataset',
    data_root=data_root,
    data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
    pipeline=test_pipeline))
test_dataloader = val_dataloader
