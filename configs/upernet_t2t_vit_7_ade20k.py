"""UPerNet on T2T-ViT-7, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_t2t_vit_7_ade20k.py 8
    tools/dist_test.sh configs/upernet_t2t_vit_7_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://t2t_vit_7). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run.
"""
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='T2TViT',
        arch='7',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://t2t_vit_7')),
    decode_head=dict(in_channels=[256, 256, 256, 256]),
    auxiliary_head=dict(in_channels=256))
