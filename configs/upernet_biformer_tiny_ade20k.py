"""UPerNet on BiFormer-T, ADE20K, 512×512, 160k iterations: BiFormer-S's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_biformer_tiny_ade20k.py 8
    tools/dist_test.sh configs/upernet_biformer_tiny_ade20k.py CHECKPOINT 8

The authors trained in float16 with loss scale 512: add --amp float16.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: random weights (the link to biformer_tiny_best.pth was reported dead in 2026). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published: nothing. By us: not run.
"""
_base_ = './upernet_biformer_small_ade20k.py'
model = dict(backbone=dict(arch='tiny'))
