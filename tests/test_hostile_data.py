"""Faulty data of every kind: what the check says is what training and evaluation meet.

A table for COCO files and one for images and labels. Every kind is made here, goes through the
check, through a dataset as training builds it, and through the evaluation, in a process of its own
that may neither die nor hang.
"""
import json
import math
import multiprocessing
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from tests.comparing import put
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.datasets.check import check_config, quick_check

ROOT = Path(__file__).resolve().parents[1]
NAMES = ('cat', 'dog', 'bird')
HANG = 30


class Outcome(NamedTuple):
    """What the doors said. check: its problems; blocked: whether they stop a training. training
    and evaluation: '' for done, the message of a UserError, or 'CRASH' and another error. loaded:
    objects that training met; counted: those that the check counted."""

    check: str
    blocked: bool
    training: str
    evaluation: str
    loaded: int
    counted: int


@pytest.fixture(scope='module')
def process() -> Iterator[ProcessPoolExecutor]:
    """One fresh process for a table. Importing mmdetection there takes seconds."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context('spawn')) as pool:
        yield pool


def guarded(door: Callable[[], Any]) -> tuple[str, Any]:
    """('', result), or what a door raised."""
    try:
        return '', door()
    except UserError as error:
        return str(error), None
    except Exception as error:
        return f'CRASH {type(error).__name__}: {error}', None


# COCO files

def coco() -> dict:
    """Three images of 40 x 30 pixels with polygons, RLE of both kinds, and a crowd."""
    def annotation(key: int, image: int, category: int, mask: Any, crowd: int = 0) -> dict:
        return dict(id=key, image_id=image, category_id=category, bbox=[4, 5, 10, 12], area=120,
                    iscrowd=crowd, segmentation=mask)
    polygon = [[4, 5, 14, 5, 14, 17, 4, 17]]
    runs = dict(size=[30, 40], counts=[125, 12, 18, 12, 1033])
    packed = dict(size=[30, 40], counts=packed_runs(runs['counts']))
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', width=40, height=30) for i in (1, 2, 3)],
        annotations=[annotation(1, 1, 7, polygon), annotation(2, 1, 8, packed),
                     annotation(3, 2, 9, polygon), annotation(4, 2, 7, runs, crowd=1)],
        categories=[dict(id=7 + i, name=name) for i, name in enumerate(NAMES)])


def packed_runs(runs: list[int]) -> str:
    from pycocotools import mask as rle_tools
    return rle_tools.frPyObjects(dict(size=[30, 40], counts=runs), 30, 40)['counts'].decode()


def first(key: str, value: Any) -> dict:
    return put(coco(), ('annotations', 0, key), value)


def mask(value: Any) -> dict:
    return first('segmentation', value)


def rle(counts: Any, size: Any = (30, 40)) -> dict:
    return mask(dict(size=list(size) if isinstance(size, tuple) else size, counts=counts))


def every(key: str, value: Any) -> dict:
    data = coco()
    for annotation in data['annotations']:
        annotation[key] = value
    return data


def from_zero() -> dict:
    data = coco()
    for annotation in data['annotations']:
        annotation['category_id'] -= 7
    return data


NAN, HUGE = math.nan, 1e18
# name: (data or bytes, a word of the message). Refused by check and training alike.
REFUSED: dict[str, tuple[Any, str]] = {
    'file is a list': ([], 'no COCO annotation file'),
    'file is null': (None, 'no COCO annotation file'),
    'file is empty': (b'', 'no JSON'),
    'file is cut': (b'{"images": [', 'no JSON'),
    'file is no text': (b'\xff\xfe\x00\x80' * 9, 'no JSON'),
    'nested 200,000 deep': (b'[' * 200_000 + b']' * 200_000, '200000 deep'),
    'nested deep inside': (put(coco(), ('info', ), 'DEEP'), 'deep in one another'),
    'images null': (put(coco(), ('images', ), None), '"images" is None'),
    'images a dict': (put(coco(), ('images', ), {}), '"images" is {}'),
    'image a list': (put(coco(), ('images', 0), []), 'entry 0 of "images" is []'),
    'image id a list': (put(coco(), ('images', 0, 'id'), [1]), 'has the id [1]'),
    'image id a word': (put(coco(), ('images', 0, 'id'), 'a'), 'ids are whole numbers'),
    'image id true': (put(coco(), ('images', 0, 'id'), True), 'has the id True'),
    'image id twice': (put(coco(), ('images', 1, 'id'), 1), 'id 1 (entries 0 and 1)'),
    'file_name an int': (put(coco(), ('images', 0, 'file_name'), 5), 'has the file_name 5'),
    'file_name null': (put(coco(), ('images', 0, 'file_name'), None), 'has the file_name None'),
    'file_name with NUL': (put(coco(), ('images', 0, 'file_name'), 'a\0.jpg'), 'file_name'),
    'file_name half a character': (put(coco(), ('images', 0, 'file_name'), '\ud800'), 'file_name'),
    'width a text': (put(coco(), ('images', 0, 'width'), '40'), "has the width '40'"),
    'width null': (put(coco(), ('images', 0, 'width'), None), 'has the width None'),
    'width negative': (put(coco(), ('images', 0, 'width'), -40), 'has the width -40'),
    'width a billion': (put(coco(), ('images', 0, 'width'), 10**9), 'has the width 1000000000'),
    'categories a dict': (put(coco(), ('categories', ), {}), '"categories" is {}'),
    'category a number': (put(coco(), ('categories', 0), 3), 'entry 0 of "categories" is 3'),
    'category name a number': (put(coco(), ('categories', 0, 'name'), 3), 'has the name 3'),
    'category name twice': (put(coco(), ('categories', 1, 'name'), 'cat'), 'share a name'),
    'category id twice': (put(coco(), ('categories', 1, 'id'), 7), 'id 7 (entries 0 and 1)'),
    'category id float': (put(coco(), ('categories', 0, 'id'), 7.0), 'has the id 7.0'),
    'annotations null': (put(coco(), ('annotations', ), None), '"annotations" is None'),
    'annotations a dict': (put(coco(), ('annotations', ), {}), '"annotations" is {}'),
    'annotation a list': (put(coco(), ('annotations', 0), []), 'entry 0 of "annotations" is []'),
    'annotation null': (put(coco(), ('annotations', 0), None), 'entry 0 of "annotations" is None'),
    'annotation id twice': (first('id', 2), 'used more than once'),
    'annotation id null': (first('id', None), 'has the id None'),
    'annotation id infinite': (first('id', math.inf), 'has the id inf'),
    'image_id a list': (first('image_id', [1]), 'has the image_id [1]'),
    'image_id a dict': (first('image_id', {}), 'has the image_id {}'),
    'image_id not listed': (first('image_id', 99), 'has the image_id 99'),
    'category ids from 0': (from_zero(), 'class indices'),
    'category_id null': (first('category_id', None), 'has the category_id None'),
    'iscrowd on every object': (every('iscrowd', 1), 'every annotation is a crowd region'),
    'iscrowd a word': (first('iscrowd', 'no'), "has iscrowd 'no'"),
    'ignore a word': (first('ignore', 'false'), "has ignore 'false'"),
    'bbox null': (first('bbox', None), 'has the bbox None'),
    'bbox a dict': (first('bbox', dict(x=1)), 'has the bbox {'),
    'bbox a text': (first('bbox', '1234'), "has the bbox '1234'"),
    'bbox of texts': (first('bbox', ['1', '2', '3', '4']), "has the bbox ['1'"),
    'bbox NaN': (first('bbox', [NAN, 1, 2, 3]), 'has the bbox [nan'),
    'bbox infinite': (first('bbox', [1, 1, math.inf, 3]), 'has the bbox'),
    'bbox huge': (first('bbox', [1, 1, HUGE, 3]), 'has the bbox'),
    'bbox far away': (first('bbox', [1, 1e6, 5, 3]), 'image sides away'),
    'bbox of three': (first('bbox', [1, 2, 3]), 'has the bbox [1, 2, 3]'),
    'bbox of booleans': (first('bbox', [True] * 4), 'has the bbox [True'),
    'bbox negative': (first('bbox', [9, 9, -4, 5]), 'negative width'),
    'area a text': (first('area', '120'), "has the area '120'"),
    'area null': (first('area', None), 'has the area None'),
    'area NaN': (first('area', NAN), 'has the area nan'),
    'area negative': (first('area', -3), 'has the area -3'),
    'mask a text': (mask('abc'), "neither RLE nor polygons: 'abc'"),
    'mask a number': (mask(5), 'neither RLE nor polygons: 5'),
    'polygons [[]]': (mask([[]]), 'no polygon of three points'),
    'polygon of 2 points': (mask([[1, 1, 5, 5]]), 'no polygon of three points'),
    'polygon with an odd number': (mask([[1, 1, 5, 5, 3, 9, 2]]), 'x without y'),
    'polygon NaN': (mask([[1, 1, 5, NAN, 3, 9]]), 'not finite'),
    'polygon infinite': (mask([[1, 1, 5, math.inf, 3, 9]]), 'not finite'),
    'polygon 1e18': (mask([[1, 1, 5, HUGE, 3, 9]]), 'image sides away'),
    'polygon far away': (mask([[1, 1, 5, -4e5, 3, 9]]), 'image sides away'),
    'polygon of texts': (mask([['1', '1', '5', '1', '3', '9']]), 'something else than numbers'),
    'polygon of a whole number of 400 digits': (mask([[1, 1, 5, 10**400, 3, 9]]), 'sides away'),
    'polygon not in a list': (mask([1, 1, 5, 1, 3, 9]), 'for polygon 0'),
    'polygon of points': (mask([[[1, 1], [5, 1], [3, 9], [2, 2], [1, 5], [1, 2]]]), 'something'),
    'RLE without counts': (mask(dict(size=[30, 40])), 'has no counts'),
    'RLE without size': (mask(dict(counts=[1200])), 'has no size'),
    'RLE of another size': (rle([1200], (40, 30)), 'is 40x30, the image 30x40'),
    'RLE size of texts': (rle([1200], ['30', '40']), 'has the size'),
    'RLE size null': (rle([1200], None), 'has the size None'),
    'RLE size huge': (rle([1200], (10**9, 10**9)), 'is 1000000000x1000000000'),
    'RLE counts null': (rle(None), 'has the counts None'),
    'RLE counts fractional': (rle([600.5, 599.5]), 'no lengths'),
    'RLE counts negative': (rle([-5, 1205]), 'no lengths'),
    'RLE counts too few': (rle([5, 5]), 'do not add up'),
    'RLE counts too many': (rle([5, 4_000_000_000]), 'do not add up'),
    'RLE counts of texts': (rle(['5', '1195']), 'no lengths'),
    'RLE text empty': (rle(''), 'empty counts'),
    'RLE text not ASCII': (rle('é☃'), 'characters'),
    'RLE text of other characters': (rle('!!~~'), 'characters'),
    'RLE text cut': (rle(packed_runs([125, 12, 18, 12, 1033])[:-1]), 'has'),
    'RLE text too short': (rle('5'), 'do not add up'),
    'RLE text that goes on': (rle('o' * 40), 'inside a number'),
    'RLE text negative': (rle('@0'), 'no lengths'),
}
# Used as they are, by check and training alike.
ACCEPTED: dict[str, Any] = {
    'nothing wrong': coco(),
    'an unknown key': put(coco(), ('info', ), {'a': [None, 'x']}),
    'no iscrowd': (lambda data: [a.pop('iscrowd') for a in data['annotations']] and data)(coco()),
    'iscrowd a boolean': first('iscrowd', False),
    'ignored object': first('ignore', 1),
    'flat box': first('bbox', [4, 5, 0, 3]),
    'no area left': first('area', 0),
    'box beside its image': first('bbox', [50, 5, 8, 9]),
    'box over the edge': first('bbox', [30, 20, 30, 20]),
    'annotation id 0': first('id', 0),
    'negative ids': first('id', -5),
    'a short polygon beside a good one': mask([[1, 1, 5, 5], [4, 5, 14, 5, 14, 17]]),
    'a fractional polygon': mask([[4.5, 5.25, 14, 5, 14.75, 17]]),
    'an image without objects only': put(coco(), ('annotations', ), coco()['annotations'][:2]),
}


def coco_config(root: Path, pipeline: list | None = None) -> Config:
    leaf = dict(type='CocoDataset', data_root=f'{root}/', ann_file='train.json',
                data_prefix=dict(img='train/'), metainfo=dict(classes=NAMES),
                pipeline=pipeline or [dict(type='LoadImageFromFile'),
                                      dict(type='LoadAnnotations', with_bbox=True, with_mask=True)])
    return Config(dict(default_scope='mmdet', model={}, train_dataloader=dict(dataset=leaf)))


def check_door(cfg: Config) -> tuple[str, bool, int]:
    report, = check_config(cfg)
    return ('\n'.join(map(str, report.problems)), any(p.blocks for p in report.problems),
            sum(report.counts.values()))


def train_coco(cfg: Config) -> int:
    """Objects of all images, loaded as training loads them."""
    from mmdet.registry import DATASETS
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(cfg.train_dataloader.dataset)
        return sum(len(item['gt_masks'].masks) for item in (dataset[i] for i in range(len(dataset)))
                   if len(item['gt_bboxes']) == len(item['gt_masks'].masks))


def evaluate(root: Path) -> None:
    from visattn_dense.evaluation.coco import evaluate_coco
    from visattn_dense.evaluation.coco_files import read_annotations, read_results
    truth = read_annotations(root / 'train.json')
    found = [dict(image_id=1, category_id=7, score=0.5, bbox=[4, 5, 10, 12],
                  segmentation=[[4, 5, 14, 5, 14, 17, 4, 17]])]
    (root / 'found.json').write_text(json.dumps(found))
    for kind in ('bbox', 'segm', 'boundary'):
        evaluate_coco(truth, read_results(root / 'found.json', truth), kind)


def coco_outcome(root: Path) -> Outcome:
    os.chdir(root)
    check, found = guarded(lambda: check_door(coco_config(root)))
    problems, blocked, counted = found or (check, True, 0)
    training, loaded = guarded(lambda: train_coco(coco_config(root)))
    evaluation, _ = guarded(lambda: evaluate(root))
    return Outcome(problems if found else f'RAISED {check}', blocked, training, evaluation,
                   loaded or 0, counted)


def write_coco(root: Path, content: Any) -> None:
    (root / 'train').mkdir(exist_ok=True)
    noise = np.random.default_rng(0)
    for key in (1, 2, 3):
        pixels = noise.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f'train/{key}.jpg')
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    (root / 'train.json').write_bytes(text.replace(b'"DEEP"', b'{"a":' * 500 + b'1' + b'}' * 500))


@pytest.mark.parametrize('kind', REFUSED)
def test_refused_coco_files(tmp_path: Path, process: ProcessPoolExecutor, kind: str) -> None:
    content, message = REFUSED[kind]
    write_coco(tmp_path, content)
    found = process.submit(coco_outcome, tmp_path).result(timeout=HANG)
    assert found.blocked and message in found.check, found
    # Training meets the same fault, with the same words, before its first batch.
    assert message in found.training and 'CRASH' not in found.training, found
    assert 'CRASH' not in found.evaluation, found


@pytest.mark.parametrize('kind', ACCEPTED)
def test_accepted_coco_files(tmp_path: Path, process: ProcessPoolExecutor, kind: str) -> None:
    write_coco(tmp_path, ACCEPTED[kind])
    found = process.submit(coco_outcome, tmp_path).result(timeout=HANG)
    assert not found.blocked and not found.training and not found.evaluation, found
    assert found.loaded == found.counted > 0, found


def test_folder_in_place_of_a_file_and_the_other_way_round(
        tmp_path: Path, process: ProcessPoolExecutor) -> None:
    write_coco(tmp_path, coco())
    (tmp_path / 'train.json').unlink()
    (tmp_path / 'train.json').mkdir()
    found = process.submit(coco_outcome, tmp_path).result(timeout=HANG)
    assert 'is a folder, not a file' in found.check and 'is a folder' in found.training
    assert 'is a folder' in found.evaluation
    other = tmp_path / 'other'
    other.mkdir()
    write_coco(other, coco())
    for path in sorted((other / 'train').iterdir()):
        path.unlink()
    (other / 'train').rmdir()
    (other / 'train').write_text('x')
    assert 'is a file, not a folder' in check_door(coco_config(other))[0]


def test_masks_that_training_needs(tmp_path: Path, process: ProcessPoolExecutor) -> None:
    data = coco()
    del data['annotations'][0]['segmentation']
    write_coco(tmp_path, data)
    found = process.submit(coco_outcome, tmp_path).result(timeout=HANG)
    assert found.blocked and 'annotations without a segmentation' in found.check
    assert 'has no mask, and the pipeline loads masks' in found.training
    boxes_only = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True)]
    assert check_door(coco_config(tmp_path, boxes_only))[:2] == ('', False)


def test_more_objects_than_coco_counts_are_noted(tmp_path: Path) -> None:
    data = coco()
    data['annotations'] += [dict(coco()['annotations'][0], id=100 + i) for i in range(120)]
    write_coco(tmp_path, data)
    report, = check_config(coco_config(tmp_path))
    note, = (note for note in report.notes if 'more than 100 objects' in note)
    assert '1 image' in note and 'at most 122' in note and '--max-dets' in note


def test_images_below_the_filter_are_counted(tmp_path: Path) -> None:
    write_coco(tmp_path, coco())
    cfg = coco_config(tmp_path)
    cfg.train_dataloader.dataset.filter_cfg = dict(filter_empty_gt=True, min_size=32)
    problems, blocked, _ = check_door(cfg)
    assert blocked and 'min_size=32 leaves out every image' in problems


# Images and labels

class Folder(NamedTuple):
    """Settings of a FolderSegDataset, what is meant by its pairs, and a word of the message;
    an empty word where the data are good."""

    word: str = ''
    dataset: dict = {}
    loading: dict = {}
    image: np.ndarray | None = None
    label: np.ndarray | None = None


SIZE = (48, 64)


def picture(size: tuple[int, int] = SIZE) -> np.ndarray:
    """A picture without any symmetry, smooth enough for JPEG. (H, W, 3) uint8."""
    coarse = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_LINEAR)


def classes(size: tuple[int, int] = SIZE) -> np.ndarray:
    coarse = np.random.default_rng(4).integers(0, 3, (4, 5), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_NEAREST)


def save(root: Path, image: Any = None, label: Any = None, *, image_name: str = 'a.png',
         label_name: str = 'a.png', **options: Any) -> None:
    for path, pixels, kept in ((root / 'images' / image_name, image, options),
                               (root / 'masks' / label_name, label, {})):
        pixels = pixels if pixels is not None else picture() if kept is options else classes()
        Image.fromarray(pixels).save(path, **kept)


def oriented(orientation: int, size: tuple[int, int] = SIZE, suffix: str = 'jpg', *,
             turn_label: bool = False, **settings: Any) -> Callable[[Path], Folder]:
    def make(root: Path) -> Folder:
        exif = Image.Exif()
        exif[0x0112] = orientation
        save(root, picture(size), classes(size), image_name=f'a.{suffix}', exif=exif,
             quality=95)
        if not turn_label:
            return Folder('EXIF orientation', settings.get('dataset', {}),
                          settings.get('loading', {}), picture(size), classes(size))
        from PIL import ImageOps
        with Image.open(root / f'images/a.{suffix}') as image:
            shown = ImageOps.exif_transpose(image)
        turned = {6: Image.Transpose.ROTATE_270}[orientation]
        label = np.asarray(Image.fromarray(classes(size)).transpose(turned))
        Image.fromarray(label).save(root / 'masks/a.png')
        return Folder('', image=np.asarray(shown), label=label)
    return make


def good(**settings: Any) -> Callable[[Callable], Callable]:
    return lambda make: lambda root: make(root)._replace(word='', **settings)


def deep(suffix: str, values: int, dtype: Any = np.uint16, word: str = 'changes the values',
         **loading: Any) -> Callable[[Path], Folder]:
    def make(root: Path) -> Folder:
        pixels = (picture()[..., 0].astype(np.float64) / 255 * values).astype(dtype)
        save(root, pixels, image_name=f'a.{suffix}')
        return Folder(word, {}, loading, pixels, classes())
    return make


def deep_colour(root: Path) -> Folder:
    save(root)
    pixels = picture().astype(np.uint16) * 8
    cv2.imwrite(str(root / 'images/a.png'), pixels[..., ::-1])
    return Folder('changes the values', {}, {}, pixels, classes())


def spoiled(path: str, spoil: Callable[[Path], Any], word: str) -> Callable[[Path], Folder]:
    def make(root: Path) -> Folder:
        save(root, image_name='a.jpg', quality=95)
        spoil(root / path)
        return Folder(word, {}, {}, picture(), classes())
    return make


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:len(path.read_bytes()) * 2 // 3])


def replace_by(make: Callable[[Path], Any]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        path.unlink()
        make(path)
    return spoil


def labelled(label: np.ndarray, word: str, **settings: Any) -> Callable[[Path], Folder]:
    def make(root: Path) -> Folder:
        save(root, label=label)
        return Folder(word, image=picture(), label=classes(), **settings)
    return make


def jpeg_masks(root: Path) -> Folder:
    save(root, label=classes() * 40, label_name='a.jpg')
    return Folder('JPEG', dict(seg_map_suffix='.jpg'), {}, picture(), classes())


def jpeg_beside(root: Path) -> Folder:
    save(root, label_name='a.jpg')
    return Folder('a.jpg is there, but JPEG changes class indices', {}, {}, picture(), classes())


def suffixed(root: Path) -> Folder:
    save(root, label_name='a_mask.png')
    return Folder("set seg_map_suffix='_mask.png'", {}, {}, picture(), classes())


def suffix_set(root: Path) -> Folder:
    return suffixed(root)._replace(word='', dataset=dict(seg_map_suffix='_mask.png'))


def palette(root: Path) -> Folder:
    save(root)
    label = Image.fromarray(classes()).convert('P')
    label.putpalette([9, 9, 9, 80, 70, 60, 200, 0, 0])
    label.putdata(classes().ravel().tolist())
    label.save(root / 'masks/a.png')
    return Folder('', image=picture(), label=classes())


def loop(root: Path) -> Folder:
    save(root)
    (root / 'images/again').symlink_to(root / 'images')
    return Folder('leads back to', {}, {}, picture(), classes())


def linked_folder(root: Path) -> Folder:
    save(root)
    for name in ('images', 'masks'):
        (root / f'{name}/a.png').rename(root / f'{name}.png')
        (root / f'real_{name}').mkdir()
        (root / f'{name}.png').rename(root / f'real_{name}/a.png')
        (root / name / 'linked').symlink_to(root / f'real_{name}')
    return Folder('', image=picture(), label=classes())


IMAGES: dict[str, Callable[[Path], Folder]] = {
    'nothing wrong': labelled(classes(), ''),
    **{f'EXIF orientation {i}': oriented(i) for i in range(2, 9)},
    'EXIF orientation 3 in a PNG': oriented(3, suffix='png'),
    'EXIF orientation 2 in a TIFF': oriented(2, suffix='tif'),
    'EXIF orientation 6 of a square': oriented(6, (48, 48)),
    'EXIF orientation 6, label turned as well': oriented(6, turn_label=True),
    'EXIF orientation 3, loader told to ignore it': good()(oriented(
        3, loading=dict(color_type='color_ignore_orientation'))),
    '16-bit PNG under an 8-bit loader': deep('png', 2040),
    '16-bit TIFF under an 8-bit loader': deep('tif', 2040),
    '16-bit PNG under an 8-bit loader of Pillow': deep('png', 2040, imdecode_backend='pillow'),
    '16-bit PNG, made float after it was made 8 bits': deep('png', 2040, to_float32=True),
    '16-bit PNG, unchanged': deep('png', 2040, word='', color_type='unchanged'),
    '16-bit colour PNG': deep_colour,
    'float TIFF': deep('tif', 1, np.float32, word='cannot be read'),
    'float TIFF under Pillow': deep('tif', 1, np.float32, imdecode_backend='pillow'),
    'image cut': spoiled('images/a.jpg', cut, 'cannot be read'),
    'image empty': spoiled('images/a.jpg', replace_by(Path.touch), 'cannot be read'),
    'image a page': spoiled('images/a.jpg', replace_by(
        lambda path: path.write_text('<html>404</html>')), 'cannot be read'),
    'image a dangling link': spoiled('images/a.jpg', replace_by(
        lambda path: path.symlink_to('nowhere')), 'cannot be read'),
    'symbolic link in a circle': loop,
    'symbolic link to a folder': linked_folder,
    'label cut': spoiled('masks/a.png', cut, 'label cannot be read'),
    'label of another size': labelled(classes((24, 32)), 'differ in size'),
    'masks saved as JPEG': jpeg_masks,
    'JPEG masks beside images': jpeg_beside,
    'masks with a suffix': suffixed,
    'masks with a suffix that is set': suffix_set,
    'labels from 1': labelled(classes() + 1, 'count the 3 classes from 1'),
    'labels out of range': labelled(classes() * 50, 'out of range'),
    'labels of 16 bits that wrap': labelled(classes().astype(np.uint16) * 256, '8 bit'),
    'labels of 16 bits that fit': labelled(classes().astype(np.uint16), ''),
    'labels in colours': labelled(picture(), 'colour picture'),
    'labels in three equal channels': labelled(np.repeat(classes()[..., None], 3, 2),
                                               'three equal channels'),
    'label with a palette': palette,
}


# Those of `IMAGES` that the evaluation of labels refuses.
UNREADABLE_LABELS = {
    'label cut', 'masks saved as JPEG', 'JPEG masks beside images', 'labels from 1',
    'labels out of range', 'labels of 16 bits that wrap', 'labels in colours',
    'labels in three equal channels'}


def folder_config(root: Path, made: Folder) -> Config:
    leaf = dict(type='FolderSegDataset', data_root=str(root), metainfo=dict(classes=NAMES),
                data_prefix=dict(img_path='images', seg_map_path='masks'),
                pipeline=[dict(type='LoadImageFromFile') | made.loading,
                          dict(type='LoadAnnotations')]) | made.dataset
    return Config(dict(default_scope='mmseg', model={}, train_dataloader=dict(dataset=leaf)))


def train_folder(cfg: Config, made: Folder) -> int:
    """1 where a training gets what is meant; raises otherwise."""
    from mmseg.registry import DATASETS

    import visattn_dense.openmmlab.datasets  # noqa: F401  (registers)
    with DefaultScope.overwrite_default_scope('mmseg'):
        item, = DATASETS.build(cfg.train_dataloader.dataset)
    image, label = item['img'], item['gt_seg_map']
    wanted = made.image if made.image.ndim == 2 else made.image[..., ::-1]
    if image.ndim == 3 and wanted.ndim == 2:
        wanted = np.repeat(wanted[..., None], 3, 2)
    if image.shape != wanted.shape:
        raise ValueError(f'an image of {image.shape}')
    # JPEG at quality 95 stays below 2 % of the range.
    if np.abs(image - wanted.astype(np.float64)).mean() > 0.02 * np.ptp(wanted):
        raise ValueError('another image')
    if label.shape != made.label.shape or (label != made.label).any():
        raise ValueError('another label')
    return 1


def folder_outcome(root: Path, kind: str) -> tuple[Outcome, str]:
    os.chdir(root)
    for name in ('images', 'masks'):
        (root / name).mkdir()
    made = IMAGES[kind](root)
    cfg = folder_config(root, made)
    check, found = guarded(lambda: check_door(cfg))
    problems, blocked, counted = found or (check, True, 0)
    training, loaded = guarded(lambda: train_folder(cfg, made))
    evaluation, _ = guarded(lambda: evaluate_folder(root / 'masks', made))
    return Outcome(problems if found else f'RAISED {check}', blocked, training, evaluation,
                   loaded or 0, counted), made.word


def evaluate_folder(masks: Path, made: Folder) -> None:
    """The labels as predictions of themselves."""
    from visattn_dense.evaluation.pairs import match_files
    from visattn_dense.evaluation.segmentation import Scores, Settings, count_pairs
    suffix = made.dataset.get('seg_map_suffix', '.png')
    pairs = match_files(masks, masks, pred_suffix=suffix, label_suffix=suffix)
    assert Scores(count_pairs(pairs, Settings(3))).miou == 100


@pytest.mark.parametrize('kind', IMAGES)
def test_images_and_labels(tmp_path: Path, process: ProcessPoolExecutor, kind: str) -> None:
    found, word = process.submit(folder_outcome, tmp_path, kind).result(timeout=HANG)
    assert 'RAISED' not in found.check, found
    # The check stops exactly what a training would not get as it is meant.
    assert found.blocked == bool(found.training), found
    assert found.blocked == bool(word), found
    assert word in found.check, found
    # The evaluation reads labels only, and any size of them.
    assert 'CRASH' not in found.evaluation, found
    assert bool(found.evaluation) == (kind in UNREADABLE_LABELS), found


# Loaders of the user's own, and images of unusual size or kind

def test_loader_of_the_users_own_is_followed(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Multispectral .npy files and labels as text, which nothing else can open."""
    root = tmp_path / 'data'
    for name in ('images', 'masks'):
        (root / name).mkdir(parents=True)
    (tmp_path / 'ownload.py').write_text('''
import numpy as np
from mmcv.transforms import BaseTransform
from mmseg.registry import TRANSFORMS


@TRANSFORMS.register_module()
class ReadBands(BaseTransform):
    def transform(self, results):
        results['img'] = np.load(results['img_path'])
        results['img_shape'] = results['ori_shape'] = results['img'].shape[:2]
        return results


@TRANSFORMS.register_module()
class ReadTable(BaseTransform):
    def transform(self, results):
        results['gt_seg_map'] = np.loadtxt(results['seg_map_path'], dtype=np.uint8)
        return results
''')
    bands = np.random.default_rng(0).integers(0, 4000, (6, 8, 7)).astype(np.uint16)
    np.save(root / 'images/a.npy', bands)
    np.savetxt(root / 'masks/a.txt', classes((6, 8)), fmt='%d')
    (tmp_path / 'config.py').write_text(f"""
custom_imports = dict(imports=['ownload'])
default_scope = 'mmseg'
model = dict()
train_dataloader = dict(dataset=dict(
    type='FolderSegDataset', data_root={str(root)!r}, metainfo=dict(classes={NAMES}),
    img_suffix='.npy', seg_map_suffix='.txt',
    data_prefix=dict(img_path='images', seg_map_path='masks'),
    pipeline=[dict(type='ReadBands'), dict(type='ReadTable')]))
""")
    monkeypatch.syspath_prepend(tmp_path)
    cfg = Config.fromfile(tmp_path / 'config.py')
    report, = check_config(cfg)
    assert not report.problems and report.sizes == [(8, 6)] and sum(report.counts.values()) == 48
    assert 'images are read by ReadBands: whether it keeps their values is not known' in (
        report.notes[-1])
    np.savetxt(root / 'masks/a.txt', classes((6, 8)) + 7, fmt='%d')
    assert 'label value out of range' in check_door(cfg)[0]
    np.save(root / 'images/a.npy', bands[:5])
    assert 'image and label differ in size' in check_door(cfg)[0]
    (root / 'images/a.npy').write_bytes(b'not an array')
    problems, blocked, _ = check_door(cfg)
    assert blocked and 'image cannot be read' in problems and 'ReadBands' in problems


@pytest.mark.parametrize('default', [None, 'mmseg', 'mmdet'])
def test_steps_that_cannot_be_looked_into(default: str | None, tmp_path: Path) -> None:
    """Whatever scope is the default of the process."""
    with DefaultScope.overwrite_default_scope(default):
        look_into_steps(tmp_path)


def look_into_steps(tmp_path: Path) -> None:
    write_coco(tmp_path, coco())
    report, = check_config(coco_config(tmp_path, [dict(type='Resize', scale=(8, 8))] * 4))
    assert any('Resize' in str(problem) for problem in report.problems)
    report, = check_config(coco_config(tmp_path, [dict(type='NoSuchLoader')]))
    assert 'the first step of the pipeline cannot be built' in str(report.problems[0])
    # No step of these reads an image, and Pillow knows none of the files: said, and no fault.
    data = coco()
    for image in data['images']:
        image['file_name'] = f'{image["id"]}.npy'
        np.save(tmp_path / 'train' / image['file_name'], picture((30, 40)))
    (tmp_path / 'train.json').write_text(json.dumps(data))
    report, = check_config(coco_config(tmp_path, [dict(type='LoadEmptyAnnotations')]))
    assert not report.problems and 'the check cannot look into the images' in report.notes[-1]


def one_pair(root: Path, image: np.ndarray, label: np.ndarray, name: str) -> Config:
    for folder in ('images', 'masks'):
        (root / folder).mkdir()
    save(root, image, label, image_name=name)
    return folder_config(root, Folder())


def test_image_above_the_limit_of_pillow_is_checked(tmp_path: Path) -> None:
    pixels = np.zeros((13500, 13500), bool)
    pixels[:, 6000:] = True
    cfg = one_pair(tmp_path, pixels, pixels, 'a.png')
    report, = check_config(cfg)
    assert not report.problems, report.problems
    assert report.sizes == [(13500, 13500)] and report.histogram()['dog'] == pytest.approx(55.6, .1)


def test_image_above_every_limit_is_one_message(tmp_path: Path) -> None:
    cfg = one_pair(tmp_path, picture(), classes(), 'a.png')
    # The head of a PNG of 40,000 x 40,000 pixels; nobody decodes that far.
    head = b'IHDR' + struct.pack('>IIBBBBB', 40_000, 40_000, 8, 2, 0, 0, 0)
    (tmp_path / 'images/a.png').write_bytes(
        b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + head + struct.pack('>I', zlib.crc32(head)))
    problems, blocked, _ = check_door(cfg)
    assert blocked and 'image cannot be read' in problems and 'a.png' in problems


def test_pipe_in_place_of_an_image(tmp_path: Path) -> None:
    cfg = one_pair(tmp_path, picture(), classes(), 'a.png')
    (tmp_path / 'images/a.png').unlink()
    os.mkfifo(tmp_path / 'images/a.png')
    problems, blocked, _ = check_door(cfg)
    assert blocked and 'not a regular file' in problems


def test_dropped_bands_are_said_and_do_not_stop(tmp_path: Path) -> None:
    four = np.concatenate([picture(), picture()[..., :1] // 2], axis=2)
    cfg = one_pair(tmp_path, four, classes(), 'a.tif')
    report, = check_config(cfg)
    problem, = report.problems
    assert not problem.blocks and '4 bands, 3 arrive' in str(problem)
    # An alpha of 255 everywhere is no loss.
    four[..., 3] = 255
    Image.fromarray(four).save(tmp_path / 'images/a.tif')
    report, = check_config(cfg)
    assert not report.problems
    # Pillow cannot open seven bands at all.
    (tmp_path / 'images/a.tif').write_bytes(tiff(np.repeat(four, 2, axis=2)[..., :7]))
    problems = check_door(cfg)[0]
    assert 'a loader of your own' in problems and 'a.tif' in problems


def tiff(pixels: np.ndarray) -> bytes:
    """A plain TIFF file of (H, W, bands) uint8 with any number of bands."""
    height, width, bands = pixels.shape
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, 1),
            (262, 3, 1, 1), (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, height),
            (279, 4, 1, pixels.size)]
    entries = b''.join(struct.pack('<HHII', *tag) for tag in tags)
    return (struct.pack('<2sHI', b'II', 42, 8 + pixels.size) + pixels.tobytes()
            + struct.pack('<H', len(tags)) + entries + struct.pack('<I', 0))


def test_quick_check_looks_at_every_kind_of_image(tmp_path: Path) -> None:
    cfg = one_pair(tmp_path, picture(), classes(), 'a.png')
    for number in range(60):
        save(tmp_path, image_name=f'{number:02}.jpg', label_name=f'{number:02}.png')
    quick_check(cfg, ['train'])
    exif = Image.Exif()
    exif[0x0112] = 4
    # The quick check takes 18 of 61 files by their place, and this is none of them.
    save(tmp_path, image_name='33.jpg', label_name='33.png', exif=exif)
    with pytest.raises(UserError, match=r'33\.jpg \(orientation 4\)'):
        quick_check(cfg, ['train'])


def test_list_of_names_that_is_no_text(tmp_path: Path) -> None:
    cfg = one_pair(tmp_path, picture(), classes(), 'a.png')
    (tmp_path / 'train.txt').write_bytes(b'\xff\xfe\x80' * 40)
    cfg.train_dataloader.dataset.ann_file = 'train.txt'
    problems, blocked, _ = check_door(cfg)
    assert blocked and 'the files cannot be listed' in problems and 'train.txt' in problems


def test_names_that_no_terminal_can_print(tmp_path: Path) -> None:
    cfg = one_pair(tmp_path, picture(), classes(), 'a.png')
    os.rename(tmp_path / 'masks/a.png', os.fsencode(tmp_path) + b'/masks/\xff.png')
    cfg.dump(tmp_path / 'config.py')
    result = subprocess.run(
        [sys.executable, str(ROOT / 'tools/check_dataset.py'), str(tmp_path / 'config.py')],
        capture_output=True, text=True, env=os.environ | dict(PYTHONPATH=str(ROOT)), cwd=ROOT)
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert 'label without an image' in result.stdout
