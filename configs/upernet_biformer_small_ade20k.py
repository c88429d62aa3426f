"""UPerNet on BiFormer-S, ADE20K, 512×512, 160k iterations: the authors' recipe.

    tools/dist_train.sh configs/upernet_biformer_small_ade20k.py 8
    tools/dist_test.sh configs/upernet_biformer_small_ade20k.py CHECKPOINT 8

The authors trained in float16 with loss scale 512: add --amp float16.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: random weights (the link to biformer_small_best.pth was reported dead in 2026). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published by the authors (README of their code): 49.8 mIoU, 50.8 with multi-scale and flip (--tta).
By us: not run.
"""
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='BiFormer',
        arch='small',
        n_win=8,
        drop_path_rate=0.3,
        init_cfg=None),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
