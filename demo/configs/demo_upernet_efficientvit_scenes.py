"""The demo's recipe with a small EfficientViT, for the pictures of docs/explain.md. The recipe is ours.

    SCENES_ROOT=work_dirs/demo/data/ade \
        python tools/train.py demo/configs/demo_upernet_efficientvit_scenes.py

Hardware: one CPU core, minutes; no download, no pretrained weights.
Data: rendered by `python -m demo segmentation`, or by `python -m demo.scenes ROOT` in ROOT/ade.
Published: nothing. By us: not run.
"""
_base_ = ['./demo_upernet_cswin_scenes.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='EfficientViT',
        arch='b0',
        drop_path_rate=0.05),
    decode_head=dict(in_channels=[16, 32, 64, 128]),
    auxiliary_head=dict(in_channels=64))
