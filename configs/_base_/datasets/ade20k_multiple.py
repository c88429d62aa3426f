"""ADE20K, tested as BiFormer's authors test Semantic FPN: sides brought to multiples of 32.

They resize once, to the next multiples; here the aspect ratio is kept first, as mmseg 1.x does it.
"""
_base_ = './ade20k.py'
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    dict(type='ResizeToMultiple', size_divisor=32),
    # After Resize: the truth keeps its size, predictions are resized to it.
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
