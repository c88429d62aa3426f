"""UPerNet on EfficientViT-B2, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_efficientvit_b2_ade20k.py 8
    tools/dist_test.sh configs/upernet_efficientvit_b2_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights of the authors, downloaded by itself; a file that is here already:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH (model.backbone.init_cfg=None: scratch)
Published by the authors: nothing with this head (45.941 mIoU with their own). By us: not run.
"""
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='EfficientViT',
        arch='b2',
        drop_path_rate=0.1,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://huggingface.co/han-cai/efficientvit-cls/resolve/main/'
                       'efficientvit_b2_r288.pt')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
# The backbone's BatchNorm: 2 images are too few for its statistics.
sync_bn = 'torch'
