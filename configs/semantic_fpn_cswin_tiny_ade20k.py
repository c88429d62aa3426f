"""Semantic FPN on CSWin-T, ADE20K, 512×512, 80k iterations: the published recipe.

    tools/dist_train.sh configs/semantic_fpn_cswin_tiny_ade20k.py 8
    tools/dist_test.sh configs/semantic_fpn_cswin_tiny_ade20k.py CHECKPOINT 8

Drop path and the decay of the rate (poly 0.9) are ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://cswin_tiny_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (arXiv 2107.00652): 48.2 mIoU. By us: not run.
"""
_base_ = [
    './_base_/models/semantic_fpn.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/schedule_80k.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='CSWin',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://cswin_tiny_224')),
    neck=dict(in_channels=[64, 128, 256, 512]))
