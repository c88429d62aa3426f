"""EfficientViT-B1 with its own head, ADE20K, 512×512: the released model or training.

    python tools/test.py configs/efficientvit_b1_ade20k.py efficientvit_seg_b1_ade20k.pt
    tools/dist_train.sh configs/efficientvit_b1_ade20k.py 8

The .pt file is the authors', as it is (huggingface.co/han-cai/efficientvit-seg). No recipe is
published for training: CSWin's is a choice of ours.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://efficientvit_b1_r288). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published by the authors (README of their code): 42.840 mIoU at 512. By us: not run.
"""
_base_ = [
    './_base_/models/efficientvit_seg.py',
    './_base_/datasets/ade20k_aligned.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        arch='b1',
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://efficientvit_b1_r288')),
    decode_head=dict(
        in_channels=[64, 128, 256], width=64, depth=3, expand_ratio=4, block='mbconv',
        act='hardswish', num_classes=150))
