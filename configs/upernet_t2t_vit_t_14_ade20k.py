"""UPerNet on T2T-ViT_t-14, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_t2t_vit_t_14_ade20k.py 8
    tools/dist_test.sh configs/upernet_t2t_vit_t_14_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: ImageNet weights (visattn://t2t_vit_t_14). Another file, or none:
    --cfg-options model.backbone.init_cfg.checkpoint=PATH
    --cfg-options model.backbone.init_cfg=None
Published: nothing. By us: not run.
"""
_base_ = './upernet_t2t_vit_14_ade20k.py'
model = dict(backbone=dict(arch='t_14', init_cfg=dict(checkpoint='visattn://t2t_vit_t_14')))
