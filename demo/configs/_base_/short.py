"""The demo's recipe in 160 iterations, for the small nets of docs/explain.md; no backbone."""
_base_ = ['../demo_upernet_cswin_scenes.py']
max_iters = 160
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=8),
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=8, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=max_iters)
default_hooks = dict(checkpoint=dict(interval=max_iters))
