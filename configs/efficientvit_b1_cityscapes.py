"""EfficientViT-B1 with its own head, Cityscapes, crops 512×1024: the released model or training.

    python tools/test.py configs/efficientvit_b1_cityscapes.py efficientvit_seg_b1_cityscapes.pt
    tools/dist_train.sh configs/efficientvit_b1_cityscapes.py 8

The .pt file is the authors', as it is (huggingface.co/han-cai/efficientvit-seg). No recipe is
published for training: CSWin's is a choice of ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/cityscapes, or the folder that CITYSCAPES_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b1_r288). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 80.547 mIoU at 1024×2048. By us: not run.
"""
_base_ = './efficientvit_b0_cityscapes.py'
model = dict(
    backbone=dict(
        arch='b1', drop_path_rate=0.05,
        init_cfg=dict(checkpoint='visattn://efficientvit_b1_r288')),
    decode_head=dict(in_channels=[64, 128, 256], width=64, depth=3))
