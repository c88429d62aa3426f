"""EfficientViT-L2 with its own head, ADE20K, 512×512: the released model or training.

    python tools/test.py configs/efficientvit_l2_ade20k.py efficientvit_seg_l2_ade20k.pt
    tools/dist_train.sh configs/efficientvit_l2_ade20k.py 8

The .pt file is the authors', as it is (huggingface.co/han-cai/efficientvit-seg). No recipe is
published for training: CSWin's is a choice of ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://efficientvit_l2_r384). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 50.702 mIoU at 512. By us: not run.
"""
_base_ = './efficientvit_l1_ade20k.py'
model = dict(
    backbone=dict(arch='l2', init_cfg=dict(checkpoint='visattn://efficientvit_l2_r384')))
