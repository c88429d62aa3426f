"""UPerNet on T2T-ViT_c-14, ADE20K, 512×512, 160k iterations: CSWin's recipe, a choice of ours.

    tools/dist_train.sh configs/upernet_t2t_vit_c_14_ade20k.py 8
    tools/dist_test.sh configs/upernet_t2t_vit_c_14_ade20k.py CHECKPOINT 8

Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/ade/ADEChallengeData2016, or the folder that ADE20K_ROOT names.
Start: random weights (the authors released no file of this form). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published: nothing. By us: not run.
"""
_base_ = './upernet_t2t_vit_14_ade20k.py'
model = dict(backbone=dict(arch='c_14', init_cfg=None))
