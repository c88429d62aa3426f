"""UPerNet on FLatten-CSWin-T, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_flatten_cswin_tiny_ade20k.py 8
    tools/dist_test.sh configs/upernet_flatten_cswin_tiny_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://flatten_cswin_tiny). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run.
"""
_base_ = './upernet_flatten_cswin_small_ade20k.py'
model = dict(
    backbone=dict(
        arch='tiny', drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://flatten_cswin_tiny')))
