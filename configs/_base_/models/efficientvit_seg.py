"""EfficientViT with its own light head (arXiv 2205.14756), as the released models have it.

A config adds `backbone.arch`, the head's sizes and, for another crop, `data_preprocessor.size`.
BatchNorm everywhere: on several GPUs its statistics are shared (`sync_bn`).
"""
_base_ = './segmentor.py'
model = dict(
    backbone=dict(type='EfficientViT'),
    decode_head=dict(
        type='EfficientViTSegHead',
        in_index=[1, 2, 3],
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)))
sync_bn = 'torch'
# A released model loads in its authors' names: tools/test.py CONFIG efficientvit_seg_*.pt
custom_hooks = [dict(type='ForeignCheckpointHook')]
