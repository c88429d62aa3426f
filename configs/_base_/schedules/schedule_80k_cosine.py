"""The Semantic FPN schedule of BiFormer: 80k iterations of 32 images, AdamW, cosine to 0."""
_base_ = './schedule_80k.py'
max_iters = 80000
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=1000),
    dict(type='CosineAnnealingLR', eta_min_ratio=1e-8, by_epoch=False, begin=1000, end=max_iters),
]
auto_scale_lr = dict(base_batch_size=32)
