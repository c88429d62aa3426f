"""The Semantic FPN schedule of CSWin: 80k iterations of 16 images, AdamW, poly to 0.

The rest is as in schedule_160k.py.
"""
_base_ = './schedule_160k.py'
max_iters = 80000
optim_wrapper = dict(optimizer=dict(lr=1e-4, weight_decay=1e-4))
param_scheduler = [
    dict(type='PolyLR', eta_min=0., power=0.9, by_epoch=False, begin=0, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=8000)
default_hooks = dict(checkpoint=dict(interval=8000))
