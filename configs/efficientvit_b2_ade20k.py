"""EfficientViT-B2 with its own head, ADE20K, 512×512: the released model or training.

    python tools/test.py configs/efficientvit_b2_ade20k.py efficientvit_seg_b2_ade20k.pt
    tools/dist_train.sh configs/efficientvit_b2_ade20k.py 8

The .pt file is the authors', as it is (huggingface.co/han-cai/efficientvit-seg). No recipe is
published for training: CSWin's is a choice of ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b2_r288). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 45.941 mIoU at 512. By us: not run.
"""
_base_ = './efficientvit_b1_ade20k.py'
model = dict(
    backbone=dict(
        arch='b2', drop_path_rate=0.1,
        init_cfg=dict(checkpoint='visattn://efficientvit_b2_r288')),
    decode_head=dict(in_channels=[96, 192, 384], width=96))
