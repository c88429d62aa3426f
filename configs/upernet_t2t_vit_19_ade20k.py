"""UPerNet on T2T-ViT-19, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_t2t_vit_19_ade20k.py 8
    tools/dist_test.sh configs/upernet_t2t_vit_19_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://t2t_vit_19). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run.
"""
_base_ = './upernet_t2t_vit_7_ade20k.py'
model = dict(
    backbone=dict(
        arch='19', drop_path_rate=0.3,
        init_cfg=dict(checkpoint='visattn://t2t_vit_19')),
    decode_head=dict(in_channels=[448, 448, 448, 448]),
    auxiliary_head=dict(in_channels=448))
