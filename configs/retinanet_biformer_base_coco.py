"""RetinaNet on BiFormer-B, COCO, 1x (12 epochs): the authors' recipe.

    tools/dist_train.sh configs/retinanet_biformer_base_coco.py 8
    tools/dist_test.sh configs/retinanet_biformer_base_coco.py CHECKPOINT 8

Weight decay is 0.05, as for Mask R-CNN; the authors' released file has 1e-4
(optim_wrapper.optimizer.weight_decay).
The authors trained in float16 with loss scale 512: add --amp float16.
Hardware: 8 GPUs with 2 images each; on fewer, add --auto-scale-lr.
Data: data/coco, or the folder that COCO_ROOT names.
Start: random weights (the link to biformer_base_best.pth was reported dead in 2026). With a file:
    --cfg-options model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=PATH
Published by the authors (README of their code): 47.1 box AP. By us: not run.
"""
_base_ = './retinanet_biformer_small_coco.py'
model = dict(
    backbone=dict(arch='base', drop_path_rate=0.3),
    neck=dict(in_channels=[192, 384, 768]))
