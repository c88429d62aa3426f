"""Semantic FPN on CSWin-S, ADE20K, 512×512, 80k iterations: the published recipe.

    tools/dist_train.sh configs/semantic_fpn_cswin_small_ade20k.py 8
    tools/dist_test.sh configs/semantic_fpn_cswin_small_ade20k.py CHECKPOINT 8

Drop path and the decay of the rate (poly 0.9) are ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://cswin_small_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (arXiv 2107.00652): 49.2 mIoU. By us: not run.
"""
_base_ = './semantic_fpn_cswin_tiny_ade20k.py'
model = dict(
    backbone=dict(
        arch='small', drop_path_rate=0.2,
        init_cfg=dict(checkpoint='visattn://cswin_small_224')))
