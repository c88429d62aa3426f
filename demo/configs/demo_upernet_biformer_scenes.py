"""The demo's recipe with a small BiFormer, for the pictures of docs/explain.md. The recipe is ours.

    SCENES_ROOT=work_dirs/demo/data/ade \
        python tools/train.py demo/configs/demo_upernet_biformer_scenes.py

Hardware: one CPU core, minutes; no download, no pretrained weights.
Data: rendered by `python -m demo segmentation`, or by `python -m demo.scenes ROOT` in ROOT/ade.
Published: nothing. By us: not run.
"""
_base_ = ['./demo_upernet_cswin_scenes.py']
model = dict(
    backbone=dict(
        _delete_=True,
        type='BiFormer',
        arch=dict(embed_dims=(32, 64, 128, 256), depths=(1, 1, 3, 1), mlp_ratio=3.,
                  overlapping=True),
        n_win=4,
        topks=(1, 2, 4, -2),
        head_dim=16,
        drop_path_rate=0.05),
    decode_head=dict(in_channels=[32, 64, 128, 256]),
    auxiliary_head=dict(in_channels=128))
