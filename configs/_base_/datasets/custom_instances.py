"""Boxes and masks of one's own in COCO's format: images/{train,val}, annotations/{train,val}.json.

A config adds data_root, the class names and a pipeline to each data set, ann_file to the evaluator,
and the batch size.
"""
_base_ = './instances.py'
train_dataloader = dict(
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(ann_file='annotations/train.json', data_prefix=dict(img='images/train/')))
val_dataloader = dict(num_workers=2, dataset=dict(
    ann_file='annotations/val.json', data_prefix=dict(img='images/val/')))
test_dataloader = val_dataloader
