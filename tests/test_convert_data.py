"""docs/datasets.md, boxes and masks of other formats: its script on small data, up to the check."""
import importlib.util
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from visattn_dense.openmmlab.datasets.check import check_config
from visattn_dense.openmmlab.datasets.check_report import DatasetReport

ROOT = Path(__file__).resolve().parents[1]
# A dog with four corners, and a cat with three, as x, y in pixels of 80 x 60.
DOG, CAT = [(8, 6), (40, 6), (40, 30), (8, 30)], [(40, 30), (72, 30), (56, 54)]

needs_supervision = pytest.mark.skipif(importlib.util.find_spec('supervision') is None,
                                       reason='supervision is not installed')


def yolo(stem: Path, split: str) -> None:
    lines = [' '.join(f'{x / 80} {y / 60}' for x, y in corners) for corners in (CAT, DOG)]
    stem.with_suffix('.txt').write_text(''.join(f'{i} {line}\n' for i, line in enumerate(lines)))
    (stem.parents[2] / 'data.yaml').write_text('names: [cat, dog]\n')


def labelme(stem: Path, split: str) -> None:
    shapes = [dict(label='dog', points=DOG, shape_type='polygon', group_id=None)]
    # The cat is seen in two pieces, and in the training images alone.
    pieces = [CAT, [(60, 4), (76, 4), (76, 12)]] if split == 'train' else []
    shapes += [dict(label='cat', points=piece, shape_type='polygon', group_id=1)
               for piece in pieces]
    stem.with_suffix('.json').write_text(json.dumps(dict(
        imagePath=f'{stem.name}.jpg', imageData=None, imageWidth=80, imageHeight=60,
        shapes=shapes)))


def voc(stem: Path, split: str) -> None:
    # VOC counts pixels from 1.
    objects = ''.join(
        f'<object><name>{name}</name><bndbox><xmin>{min(xs) + 1}</xmin><ymin>{min(ys) + 1}</ymin>'
        f'<xmax>{max(xs) + 1}</xmax><ymax>{max(ys) + 1}</ymax></bndbox></object>'
        for name, (xs, ys) in (('dog', zip(*DOG, strict=True)), ('cat', zip(*CAT, strict=True))))
    stem.with_suffix('.xml').write_text(
        f'<annotation><filename>{stem.name}.jpg</filename><size><width>80</width><height>60'
        f'</height><depth>3</depth></size>{objects}</annotation>')


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """Three images of each split, and folders for what is known about them."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for kind in ('images', 'labels'):
            (tmp_path / kind / split).mkdir(parents=True)
        for number in range(3):
            pixels = rng.integers(0, 255, (60, 80, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / f'images/{split}/{split}{number}.jpg')
    return tmp_path


def checked(root: Path, classes: list[str], masks: bool = True) -> list[DatasetReport]:
    """What tools/check_dataset.py finds with a copy of the config for objects of one's own."""
    cfg = Config.fromfile(ROOT / 'configs/finetune_mask_rcnn_cswin_tiny_custom.py')
    metainfo = dict(classes=classes)
    head = cfg.model.roi_head
    head.bbox_head.num_classes = head.mask_head.num_classes = len(classes)
    if not masks:
        del head['mask_head']
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        dataset.update(data_root=str(root), metainfo=metainfo)
        if not masks:
            for step in dataset.pipeline:
                if step.type == 'LoadAnnotations':
                    step.with_mask = False
    return check_config(cfg)


@needs_supervision
@pytest.mark.parametrize('write', [yolo, labelme, voc])
def test_the_script_of_the_page_converts(parts: Path, write, monkeypatch, capsys):
    for split in ('train', 'val'):
        # One image shows nothing, and has no file.
        for number in range(2):
            write(parts / f'labels/{split}/{split}{number}', split)
    if write is labelme:
        for image in parts.glob('images/*/*2.jpg'):
            image.unlink()
    page = (ROOT / 'docs/datasets.md').read_text()
    script, = re.findall(r'```python\n(# python to_coco\.py .*?)```', page, re.S)
    (parts / 'to_coco.py').write_text(script)
    monkeypatch.setattr(sys, 'argv', ['to_coco.py', write.__name__, str(parts)])
    runpy.run_path(str(parts / 'to_coco.py'))
    assert "classes = ['cat', 'dog']" in capsys.readouterr().out
    for report in checked(parts, ['cat', 'dog'], masks=write is not voc):
        assert not report.problems, report.as_table()
    for split in ('train', 'val'):
        found = json.loads((parts / f'annotations/{split}.json').read_text())
        cats = 0 if write is labelme and split == 'val' else 2
        assert len(found['images']) == (2 if write is labelme else 3)
        by_class = [[item for item in found['annotations'] if item['category_id'] == i]
                    for i in (1, 2)]
        assert [len(items) for items in by_class] == [cats, 2]
        for item in by_class[1]:
            # Polygons and boxes end inside or after the last pixel.
            np.testing.assert_allclose(item['bbox'], [8, 6, 32, 24], atol=1)
            assert item['iscrowd'] == 0
            assert [len(p) // 2 for p in item['segmentation']] == ([] if write is voc else [4])
        for item in by_class[0]:
            assert item['iscrowd'] == 0
            assert len(item['segmentation']) == {yolo: 1, labelme: 2, voc: 0}[write]


def test_the_check_takes_what_cvat_writes(parts: Path):
    """A file in the form of CVAT's export "COCO 1.0"; a box has an empty segmentation there."""
    (parts / 'annotations').mkdir()
    flat = [float(value) for corner in DOG for value in corner]
    for split in ('train', 'val'):
        common = dict(iscrowd=0, attributes=dict(occluded=False))
        (parts / f'annotations/{split}.json').write_text(json.dumps(dict(
            licenses=[dict(name='', id=0, url='')], info=dict(contributor='', year=''),
            categories=[dict(id=1, name='dog', supercategory='')],
            images=[dict(id=1, width=80, height=60, file_name=f'{split}0.jpg', license=0,
                         flickr_url='', coco_url='', date_captured=0)],
            annotations=[
                dict(id=1, image_id=1, category_id=1, segmentation=[flat], area=768.,
                     bbox=[8., 6., 32., 24.], **common),
                dict(id=2, image_id=1, category_id=1, segmentation=[], area=100.,
                     bbox=[50., 10., 10., 10.], **common)])))
    assert not any(report.problems for report in checked(parts, ['dog'], masks=False))
    problem, = checked(parts, ['dog'])[0].problems
    assert 'without a segmentation' in problem.what and problem.files == ['annotation 2']
