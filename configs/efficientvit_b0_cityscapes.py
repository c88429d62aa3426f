"""EfficientViT-B0 with its own head, Cityscapes, crops 512×1024: the released model or training.

    python tools/test.py configs/efficientvit_b0_cityscapes.py efficientvit_seg_b0_cityscapes.pt
    tools/dist_train.sh configs/efficientvit_b0_cityscapes.py 8

The .pt file is the authors', as it is (huggingface.co/han-cai/efficientvit-seg). No recipe is
published for training: CSWin's is a choice of ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/cityscapes, or the folder that CITYSCAPES_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b0_r224_timm). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 75.653 mIoU at 1024×2048. By us: not run.
"""
_base_ = [
    './_base_/models/efficientvit_seg.py',
    './_base_/datasets/cityscapes.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        arch='b0',
        drop_path_rate=0.0,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://efficientvit_b0_r224_timm')),
    decode_head=dict(
        in_channels=[32, 64, 128], width=32, depth=1, expand_ratio=4, block='mbconv',
        act='hardswish', final_expand=4, num_classes=19))
