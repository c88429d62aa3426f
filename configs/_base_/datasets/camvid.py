"""CamVid (11 classes) at 480×360, 8 images per GPU; the pipeline is ours.

The folder is `data/camvid`, with images/{train,val,test} and annotations/{train,val,test}; the
environment variable CAMVID_ROOT names another:

    CAMVID_ROOT=/datasets/camvid python tools/train.py CONFIG
"""
_base_ = './segmentation.py'
data_root = '{{$CAMVID_ROOT:data/camvid}}'
crop_size = (320, 320)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(480, 360), ratio_range=(0.75, 1.75), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(480, 360), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
train_dataloader = dict(
    batch_size=8,
    dataset=dict(
        type='CamVidDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/train', seg_map_path='annotations/train'),
        pipeline=train_pipeline))
val_dataloader, test_dataloader = (
    dict(dataset=dict(
        type='CamVidDataset',
        data_root=data_root,
        data_prefix=dict(img_path=f'images/{part}', seg_map_path=f'annotations/{part}'),
        pipeline=test_pipeline))
    for part in ('val', 'test'))
