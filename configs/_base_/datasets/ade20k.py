"""ADEChallengeData2016 (150 classes), mmseg's ADE20K pipeline, 2 images per GPU.

The folder is `data/ade/ADEChallengeData2016`; the environment variable ADE20K_ROOT names another:

    ADE20K_ROOT=/datasets/ADEChallengeData2016 tools/dist_train.sh CONFIG 8
"""
_base_ = './segmentation.py'
data_root = '{{$ADE20K_ROOT:data/ade/ADEChallengeData2016}}'
train_dataloader = dict(dataset=dict(
    type='ADE20KDataset',
    reduce_zero_label=True,
    data_root=data_root,
    data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(dataset=dict(
    type='ADE20KDataset',
    reduce_zero_label=True,
    data_root=data_root,
    data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
