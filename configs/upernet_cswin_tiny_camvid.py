"""UPerNet on CSWin-T, CamVid: a real dataset that one GPU trains over lunch. The recipe is ours.

    python tools/train.py configs/upernet_cswin_tiny_camvid.py
    python tools/test.py configs/upernet_cswin_tiny_camvid.py CHECKPOINT

Hardware: one GPU with 8 images; on less, train_dataloader.batch_size=4 and --auto-scale-lr.
Data: data/camvid, or the folder that CAMVID_ROOT names; docs/datasets.md says how to get it.
Start: ImageNet weights (visattn://cswin_tiny_224). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run in full.
"""
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/camvid.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        type='CSWin',
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(type='Pretrained', checkpoint='visattn://cswin_tiny_224')),
    decode_head=dict(in_channels=[64, 128, 256, 512], num_classes=11),
    auxiliary_head=dict(in_channels=256, num_classes=11))

# 184 images: 4000 iterations of 8 see each of them 174 times.
max_iters = 4000
optim_wrapper = dict(optimizer=dict(lr=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=200),
    dict(type='PolyLR', eta_min=0., power=1., by_epoch=False, begin=200, end=max_iters),
]
train_cfg = dict(max_iters=max_iters, val_interval=500)
default_hooks = dict(checkpoint=dict(interval=500))
auto_scale_lr = dict(enable=False, base_batch_size=8)
