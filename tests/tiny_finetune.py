"""The configs for fine-tuning made small enough for one core; everything that they do stays."""
import json
import re
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tests.tiny_runs import ROOT
from visattn_dense.backbones import CSWin

SEGMENTATION = ROOT / 'configs/finetune_upernet_cswin_tiny_custom.py'
DETECTION = ROOT / 'configs/finetune_mask_rcnn_cswin_tiny_custom.py'
SMALL = ROOT / 'configs/finetune_small_custom.py'
SMALL_DETECTOR = ROOT / 'configs/finetune_small_detector_custom.py'
ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8), stripe_widths=(1, 2, 2, 2))
KNOBS = dict(size=(64, 64), batch_size=2, max_iters=4, weights='tiny.pth')
DETECTION_KNOBS = dict(KNOBS, size=(128, 96))
COMMON = f'''
model['backbone'].update(arch={ARCH})
for loader in (train_dataloader, val_dataloader, test_dataloader):
    loader.update(num_workers=0, persistent_workers=False)
train_cfg.update(val_interval=2)
default_hooks['checkpoint'].update(interval=2)
default_hooks.setdefault('logger', {{}}).update(interval=1)
param_scheduler = []
'''
TINY = COMMON + '''
model['decode_head'].update(in_channels=[16, 32, 64, 128], channels=8)
model['auxiliary_head'].update(in_channels=64, channels=8)
'''
TINY_DETECTOR = COMMON + '''
model['neck'].update(in_channels=[16, 32, 64, 128], out_channels=16)
model['rpn_head'] = dict(in_channels=16, feat_channels=16)
model['roi_head'].update(bbox_roi_extractor=dict(out_channels=16),
                         mask_roi_extractor=dict(out_channels=16))
model['roi_head']['bbox_head'].update(in_channels=16, fc_out_channels=32)
model['roi_head']['mask_head'].update(num_convs=1, in_channels=16, conv_out_channels=16)
model['train_cfg'] = dict(rpn_proposal=dict(max_per_img=50), rcnn=dict(sampler=dict(num=32)))
model['test_cfg'] = dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0., max_per_img=20))
'''


def write_weights(folder: Path) -> None:
    torch.save(CSWin(ARCH).state_dict(), folder / 'tiny.pth')


def edited(text: str, **values: object) -> str:
    """A config with the lines changed that are the user's."""
    for name, value in values.items():
        text, count = re.subn(rf'^{name} = .*$', f'{name} = {value!r}', text, flags=re.M)
        assert count == 1, name
    return text


def write_config(source: Path, folder: Path, tiny: str = '', **values: object) -> Path:
    """A copy with its bases, the user's lines changed."""
    shutil.copytree(ROOT / 'configs/_base_', folder / 'configs/_base_')
    config = folder / 'configs/mine.py'
    config.write_text(edited(source.read_text(), **values) + tiny)
    return config


def write_coco(root: Path, split: str, count: int) -> None:
    """Grey photographs with a bright upright or lying box each, higher up in 'train'."""
    y = 12 if split == 'train' else 20
    (root / 'images' / split).mkdir(parents=True)
    (root / 'annotations').mkdir(exist_ok=True)
    coco = dict(images=[], annotations=[], categories=[
        dict(id=7, name='upright'), dict(id=3, name='lying')])
    for number in range(count):
        x, (width, height) = 8 + number, ((40, 64), (64, 40))[number % 2]
        image = np.full((96, 128, 3), 90, np.uint8)
        image[y:y + height, x:x + width] = (250, 200, 40 * number % 256)
        Image.fromarray(image).save(root / 'images' / split / f'{number}.jpg')
        coco['images'].append(
            dict(id=number, file_name=f'{number}.jpg', height=96, width=128))
        coco['annotations'].append(dict(
            id=number, image_id=number, category_id=(7, 3)[number % 2], iscrowd=0,
            bbox=[x, y, width, height], area=width * height, segmentation=[
                [x, y, x + width, y, x + width, y + height, x, y + height]]))
    (root / 'annotations' / f'{split}.json').write_text(json.dumps(coco))
