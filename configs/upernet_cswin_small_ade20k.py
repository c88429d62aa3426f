"""UPerNet on CSWin-S, ADE20K, 512×512, 160k iterations: the authors' recipe.

    tools/dist_train.sh configs/upernet_cswin_small_ade20k.py 8
    tools/dist_test.sh configs/upernet_cswin_small_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://cswin_small_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 50.4 mIoU, 51.5 with multi-scale and flip (--tta).
By us: not run.
"""
_base_ = './upernet_cswin_tiny_ade20k.py'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.4,
        init_cfg=dict(checkpoint='visattn://cswin_small_224')))
