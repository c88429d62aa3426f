"""The demo's recipe with a small FLatten-CSWin, for the pictures of docs/explain.md. The recipe is ours.

    SCENES_ROOT=work_dirs/demo/data/ade \
        python tools/train.py demo/configs/demo_upernet_flatten_scenes.py

Hardware: one CPU core, minutes; no download, no pretrained weights.
Data: rendered by `python -m demo segmentation`, or by `python -m demo.scenes ROOT` in ROOT/ade.
Published: nothing. By us: not run.
"""
_base_ = ['./demo_upernet_cswin_scenes.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='FLattenCSWin',
        arch=dict(embed_dim=32, depths=(2, 2, 4, 1), num_heads=(2, 2, 4, 8),
                  stripe_widths=(1, 2, 4, 4)),
        img_size=(192, 256),
        drop_path_rate=0.05),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128))
