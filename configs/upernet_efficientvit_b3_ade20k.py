"""UPerNet on EfficientViT-B3, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_efficientvit_b3_ade20k.py 8
    tools/dist_test.sh configs/upernet_efficientvit_b3_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b3_r288). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing with this head; 49.013 mIoU with the authors' own. By us: not run.
"""
_base_ = './upernet_efficientvit_b1_ade20k.py'
model = dict(
    backbone=dict(
        arch='b3', drop_path_rate=0.1,
        init_cfg=dict(checkpoint='visattn://efficientvit_b3_r288')),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
