"""The data check of COCO-format detection configs: every fault names file and fix."""
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from visattn_dense.errors import UserError
from visattn_dense.openmmlab.datasets import check_coco
from visattn_dense.openmmlab.datasets.check import check_config, quick_check

SHARED = Path(__file__).resolve().parents[2] / 'shared' / 'data'
CLASSES = ('cat', 'dog', 'bird')


def content() -> dict:
    """Three images of 40 x 30 pixels: two boxes, one box and a crowd, nothing."""
    def box(key: int, image: int, category: int, crowd: int = 0) -> dict:
        return dict(id=key, image_id=image, category_id=category, bbox=[4, 5, 10, 12], area=120,
                    iscrowd=crowd, segmentation=[[4, 5, 14, 5, 14, 17, 4, 17]])
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (1, 2, 3)],
        annotations=[box(1, 1, 7), box(2, 1, 8), box(3, 2, 9), box(4, 2, 7, crowd=1)],
        categories=[dict(id=7 + i, name=name) for i, name in enumerate(CLASSES)])


def write(root: Path, data: dict, **style) -> None:
    (root / 'train.json').write_text(json.dumps(data, **style))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / 'train').mkdir()
    noise = np.random.default_rng(0)
    for key in (1, 2, 3):
        pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f'train/{key}.jpg')
    write(tmp_path, content())
    return tmp_path


def config(root: Path, classes: tuple = CLASSES, num_classes: int = 3, **dataset) -> Config:
    leaf = dict(type='CocoDataset', data_root=f'{root}/', ann_file='train.json',
                data_prefix=dict(img='train/'), metainfo=dict(classes=classes)) | dataset
    return Config(dict(
        default_scope='mmdet',
        model=dict(roi_head=dict(bbox_head=[dict(num_classes=num_classes)],
                                 mask_head=dict(num_classes=num_classes))),
        train_dataloader=dict(dataset=dict(type='ClassBalancedDataset', dataset=leaf))))


def problems(cfg: Config) -> str:
    return '\n'.join(str(problem) for report in check_config(cfg) for problem in report.problems)


def test_clean_data_are_counted(root: Path) -> None:
    report, = check_config(config(root))
    assert not report.problems
    assert (report.images, report.read) == (3, 3)
    assert report.histogram() == dict(cat=50, dog=25, bird=25)
    assert '4 boxes, 1 of them crowd regions; 1 images without a box' in report.notes[0]
    quick_check(config(root))


def first_annotation(**changes) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        data = content()
        data['annotations'][0].update(changes)
        write(root, data)
    return spoil


def without(group: str, key: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        data = content()
        del data[group][0][key]
        write(root, data)
    return spoil


FAULTS = {
    'annotation of no image': (first_annotation(image_id=99), 'annotation 1 has the image_id 99',
                               'add the images to the file'),
    'corners instead of width and height': (first_annotation(bbox=[30, 20, 38, 29]),
                                            'annotation 1 of 1.jpg', '[x, y, width, height]'),
    'id twice': (first_annotation(id=2), 'annotation 2 (entries 0 and 1)', 'number them anew'),
    'no area': (without('annotations', 'area'), 'annotation 1 has no area',
                'write image_id, category_id, bbox, id, area'),
    'short box': (first_annotation(bbox=[1, 2, 3]), 'the bbox [1, 2, 3]', '[x, y, width, height]'),
    'no mask': (without('annotations', 'segmentation'), 'annotation 1', 'without mask_head'),
    'mask beside its box': (
        first_annotation(segmentation=[[24, 5, 34, 5, 34, 17, 24, 17]]), 'annotation 1 of 1.jpg',
        'draw both on the same image'),
    'RLE beside its box': (
        # A column is 30 long: one pixel at (39, 29).
        first_annotation(segmentation=dict(size=[30, 40], counts=[1199, 1])),
        'annotation 1 of 1.jpg', 'draw both on the same image'),
    'no width': (without('images', 'width'), 'entry 0 of "images" has no width',
                 'write id, width, height, file_name'),
    'image file missing': (lambda root: (root / 'train/2.jpg').unlink(), 'train/2.jpg',
                           'data_prefix=dict(img=...)'),
    'image truncated': (lambda root: (root / 'train/2.jpg').write_bytes(
        (root / 'train/2.jpg').read_bytes()[:-60]), '2.jpg', 'copy the file again'),
    'other size': (lambda root: Image.new('RGB', (30, 40)).save(root / 'train/3.jpg'),
                   '3.jpg is 30x40, annotated as 40x30', 'true width and height'),
    'not JSON': (lambda root: (root / 'train.json').write_text('{"images": ['), 'train.json',
                 'download or write it again'),
    'a list': (lambda root: (root / 'train.json').write_text('[]'), 'train.json',
               'an object with the lists images'),
    'no categories': (lambda root: write(root, dict(images=[])), 'train.json',
                      'images, annotations and categories'),
    'annotation file missing': (lambda root: (root / 'train.json').unlink(), 'train.json',
                                'annotations_trainval2017.zip'),
    'nothing usable': (lambda root: write(root, content() | dict(annotations=[])), 'train.json',
                       'ann_file is the right file'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_names_file_and_fix(root: Path, fault: str) -> None:
    spoil, file, fix = FAULTS[fault]
    spoil(root)
    found = problems(config(root))
    assert file in found
    assert fix in found


@pytest.mark.parametrize('mask', [
    [[4, 5, 6, 5, 6, 7]],                           # smaller than its box
    [[3, 4, 15, 4, 15, 18, 3, 18]],                 # a pixel larger on each side
    [[9, 5, 9, 11, 9, 17]],                         # a line
    [[4, 5, 14, 5], [4, 5, 14, 5, 14, 17]],         # one polygon is not drawn
    dict(size=[30, 40], counts=[155, 3, 1042])])
def test_masks_that_fit_their_boxes(root: Path, mask: list | dict) -> None:
    first_annotation(segmentation=mask)(root)
    assert 'mask lies in the box' not in problems(config(root))


def test_class_names_that_the_file_lacks(root: Path) -> None:
    with pytest.raises(UserError) as error:
        quick_check(config(root, ('cat', 'dogs', 'bird')))
    message = str(error.value)
    assert "'dogs'" in message and "Did you mean 'dog'" in message and 'train.json' in message


def test_class_order_of_the_file_counts(root: Path) -> None:
    found = problems(config(root, ('dog', 'cat', 'bird')))
    assert "classes=('cat', 'dog', 'bird')" in found and 'train.json' in found


def test_fewer_classes_than_the_file_are_allowed(root: Path) -> None:
    report, = check_config(config(root, ('cat', 'bird'), num_classes=2))
    assert not report.problems
    assert report.histogram() == dict(cat=pytest.approx(200 / 3), bird=pytest.approx(100 / 3))
    assert any('dog' in note for note in report.notes)


def test_every_head_must_have_the_classes_of_the_dataset(root: Path) -> None:
    found = problems(config(root, num_classes=80))
    for head in ('model.roi_head.bbox_head[0]', 'model.roi_head.mask_head'):
        assert f'set {head}.num_classes=3' in found


def test_flat_boxes_are_counted_not_refused(root: Path) -> None:
    first_annotation(bbox=[4, 5, 0, 3])(root)
    report, = check_config(config(root))
    assert not report.problems
    assert any(note.startswith('1 boxes of zero area') and '1.jpg' in note
               for note in report.notes)


@pytest.mark.parametrize('style', [{}, dict(indent=1), dict(separators=(',', ':'))])
def test_quick_check_of_a_large_file_reads_images_and_categories(
        root: Path, monkeypatch: pytest.MonkeyPatch, style: dict) -> None:
    monkeypatch.setattr(check_coco, 'QUICK_BYTES', 0)
    write(root, content(), **style)
    quick_check(config(root))
    report, = check_config(config(root), quick=True)
    assert report.images == 3
    # Where the layout of the file forbids it, all of it is parsed and the boxes are counted.
    assert bool(report.counts) == ('indent' in style)
    (root / 'train/2.jpg').unlink()
    with pytest.raises(UserError, match=r'train/2\.jpg'):
        quick_check(config(root))


@pytest.mark.skipif(not SHARED.is_dir(), reason='shared data are not here')
@pytest.mark.parametrize('split', ['train', 'val'])
def test_real_coco_images_are_clean(split: str) -> None:
    cfg = config(SHARED / 'coco', num_classes=80, metainfo={},
                 ann_file=f'annotations/instances_{split}2017.json',
                 data_prefix=dict(img=f'{split}2017/'))
    report, = check_config(cfg)
    assert not report.problems
    assert report.read == report.images > 40
