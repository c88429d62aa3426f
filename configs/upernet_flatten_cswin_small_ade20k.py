"""UPerNet on FLatten-CSWin-S, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_flatten_cswin_small_ade20k.py 8
    tools/dist_test.sh configs/upernet_flatten_cswin_small_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: random weights (the authors released none of this size). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published: nothing. By us: not run.
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
        arch='small',
        drop_path_rate=0.4),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'positional_encoding': dict(decay_mult=0.)}))
