"""UPerNet on EfficientViT-B1, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_efficientvit_b1_ade20k.py 8
    tools/dist_test.sh configs/upernet_efficientvit_b1_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b1_r288). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing with this head; 42.840 mIoU with the authors' own. By us: not run.
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
        arch='b1',
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://efficientvit_b1_r288')),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128))
# The backbone's BatchNorm: 2 images are too few for its statistics.
sync_bn = 'torch'
