"""UPerNet on FLatten-CSWin-T, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_flatten_cswin_tiny_ade20k.py 8
    tools/dist_test.sh configs/upernet_flatten_cswin_tiny_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights of the authors, downloaded by itself. A file that is here already goes in by
    --cfg-options model.backbone.init_cfg.checkpoint=PATH; from scratch with
    --cfg-options model.backbone.init_cfg=None
Published by the authors: nothing with this head. By us: not run.
"""
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/schedule_160k.py',
    './_base_/default_runtime.py',
]
model = dict(
    backbone=dict(
        type='FLattenCSWin',
        arch='tiny',
        drop_path_rate=0.3,
        init_cfg=dict(
            type='Pretrained',
            checkpoint='https://cloud.tsinghua.edu.cn/f/48ba765ba8b0451d9d5a/?dl=1')),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'positional_encoding': dict(decay_mult=0.)}))
