"""UPerNet on CSWin-B, ADE20K, 512×512, 160k iterations: the authors' recipe.

    tools/dist_train.sh configs/upernet_cswin_base_ade20k.py 8
    tools/dist_test.sh configs/upernet_cswin_base_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://cswin_base_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 51.1 mIoU, 52.2 with multi-scale and flip (--tta).
By us: not run.
"""
_base_ = './upernet_cswin_tiny_ade20k.py'
model = dict(
    backbone=dict(
        arch='base', drop_path_rate=0.6,
        init_cfg=dict(checkpoint='visattn://cswin_base_224')),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384))
