"""Semantic FPN on BiFormer-S, ADE20K, 512×512, 80k iterations: the authors' recipe.

    tools/dist_train.sh configs/semantic_fpn_biformer_small_ade20k.py 8
    tools/dist_test.sh configs/semantic_fpn_biformer_small_ade20k.py CHECKPOINT 8

The authors trained in float16 with loss scale 512: add --amp float16.
Hardware: 8 GPUs with 4 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: random weights (the link to biformer_small_best.pth was reported dead in 2026). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published by the authors (README of their code): 48.9 mIoU. By us: not run.
"""
_base_ = [
    './_base_/models/semantic_fpn.py',
    './_base_/datasets/ade20k_multiple.py',
    './_base_/schedules/schedule_80k_cosine.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='BiFormer',
        arch='small',
        n_win=8,
        drop_path_rate=0.15,
        init_cfg=None),
    neck=dict(in_channels=[64, 128, 256, 512]))
train_dataloader = dict(batch_size=4)
