"""ADE20K, tested as EfficientViT's authors test: bicubic, to multiples of 32 in both sides.

They resize once, to the aligned size; here the aspect ratio is kept first and aligned then.
"""
_base_ = './ade20k.py'
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True, interpolation='bicubic'),
    dict(type='ResizeToMultiple', size_divisor=32, interpolation='bicubic'),
    # After Resize: the truth keeps its size, predictions are resized to it.
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
