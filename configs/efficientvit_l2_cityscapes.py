"""EfficientViT-L2 with its own head, Cityscapes, crops 512×1024: the released model or training.

    python tools/test.py configs/efficientvit_l2_cityscapes.py efficientvit_seg_l2_cityscapes.pt
    tools/dist_train.sh configs/efficientvit_l2_cityscapes.py 8

The .pt file is the authors', as it is (huggingface.co/han-cai/efficientvit-seg). No recipe is
published for training: CSWin's is a choice of ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/cityscapes, or the folder that CITYSCAPES_ROOT names.
Start: ImageNet weights (visattn://efficientvit_l2_r384). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 83.228 mIoU at 1024×2048. By us: not run.
"""
_base_ = './efficientvit_l1_cityscapes.py'
model = dict(
    backbone=dict(arch='l2', init_cfg=dict(checkpoint='visattn://efficientvit_l2_r384')),
    decode_head=dict(depth=5))
