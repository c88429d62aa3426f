"""Training images that come back in the evaluation: which are named, and which are not."""
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image, ImageDraw, ImageEnhance

from visattn_dense.openmmlab.datasets import check_duplicates
from visattn_dense.openmmlab.datasets.check import check_config
from visattn_dense.openmmlab.datasets.check_duplicates import ALIKE, fingerprint
from visattn_dense.openmmlab.datasets.check_report import DatasetReport


def scene(seed: int, size: tuple[int, int] = (173, 131)) -> Image.Image:
    """Structures of several sizes below a bright sky, so that all scenes are a little alike."""
    rng = np.random.default_rng(seed)
    layers = [Image.fromarray(rng.integers(0, 255, (cells, cells, 3), np.uint8)).resize(
        size, Image.Resampling.BICUBIC) for cells in (5, 11, 29)]
    pixels = np.mean([np.asarray(layer, float) for layer in layers], axis=0)
    return Image.fromarray((0.8 * pixels + np.linspace(50, 0, size[1])[:, None, None])
                           .astype(np.uint8))


def barred(image: Image.Image) -> Image.Image:
    width, height = image.size
    ImageDraw.Draw(image).rectangle((0.6 * width, 0.9 * height, width, height), fill='white')
    return image


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    'smaller': lambda image: image.resize((image.width // 2, image.height // 2)),
    'brighter': lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    'paler': lambda image: ImageEnhance.Contrast(image).enhance(0.7),
    'grey': lambda image: image.convert('L'),
    'bar in a corner': barred,
    'edges cut off': lambda image: image.crop((3, 3, image.width - 3, image.height - 3)),
    'palette': lambda image: image.convert('P', palette=Image.Palette.ADAPTIVE),
    '16 bit': lambda image: Image.fromarray(200 * np.asarray(image.convert('L'), np.uint16)),
}


def test_copies_are_alike_and_different_images_are_not():
    vectors = [fingerprint(scene(seed)) for seed in range(12)]
    table = np.stack(vectors).astype(float) @ np.stack(vectors).astype(float).T
    assert (table - 2 * np.eye(12)).max() < ALIKE - 0.1
    for name, change in CHANGES.items():
        for seed in range(4):
            alike = float(vectors[seed].astype(float) @ fingerprint(change(scene(seed))))
            assert alike > ALIKE + 0.02, (name, alike)
    assert fingerprint(Image.new('RGB', (40, 30), 'red')) is None
    for mode in ('1', 'LA', 'RGBA', 'CMYK', 'YCbCr', 'HSV', 'LAB', 'I', 'F'):
        image = (Image.merge(mode, scene(0).split()) if mode == 'LAB' else
                 scene(0).convert('L').convert(mode) if mode in 'IF' else scene(0).convert(mode))
        assert fingerprint(image).shape == (544,), mode
    # Infinite values of scientific images are left out of the comparison.
    values = np.random.default_rng(0).normal(size=(40, 30)).astype(np.float32)
    values[3, 4] = np.inf
    assert np.isfinite(fingerprint(Image.fromarray(values))).all()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five images to train on, three to evaluate on: one copy, one near copy, one new image."""
    images = {f'train/{seed}': scene(seed) for seed in range(5)} | {
        'val/copy': scene(1), 'val/near': CHANGES['brighter'](scene(3)), 'val/new': scene(20)}
    for name, image in images.items():
        for kind in ('images', 'masks'):
            (tmp_path / kind / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / 'images' / f'{name}.jpg')
        label = np.arange(image.height * image.width).reshape(image.height, -1) % 2
        Image.fromarray(label.astype(np.uint8)).save(tmp_path / 'masks' / f'{name}.png')
    return tmp_path


def loader(root: Path, split: str) -> dict:
    return dict(dataset=dict(
        type='FolderSegDataset', data_root=str(root), metainfo=dict(classes=['a', 'b']),
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'masks/{split}')))


def test_check_names_copies_and_near_copies(root: Path):
    cfg = Config(dict(
        default_scope='mmseg', custom_imports=dict(imports=['visattn_dense.openmmlab.datasets']),
        model=dict(decode_head=dict(num_classes=2)),
        train_dataloader=loader(root, 'train'), val_dataloader=loader(root, 'val')))
    train, val = check_config(cfg)
    assert not train.problems and not any('nearly' in note for note in train.notes)
    problem, = val.problems
    copy = root / 'images/val/copy.jpg', root / 'images/train/1.jpg'
    assert problem.files == [f'{copy[0]} = {copy[1]}'] and not problem.blocks
    near, = (note for note in val.notes if 'nearly like' in note)
    assert near.startswith('1 image looks')
    assert f'{root}/images/val/near.jpg ~ {root}/images/train/3.jpg' in near and 'new' not in near
    # A split alone, and the check before a training, have nothing to compare with.
    for reports in (check_config(cfg, ['val']), check_config(cfg, quick=True)):
        assert not any(report.problems for report in reports)


def test_check_of_boxes_names_copies_too(root: Path):
    loaders = {}
    for split, names in (('train', '01234'), ('val', ['copy', 'near', 'new'])):
        (root / f'{split}.json').write_text(json.dumps(dict(
            images=[dict(id=i, file_name=f'{name}.jpg', width=173, height=131)
                    for i, name in enumerate(names)],
            annotations=[dict(id=1, image_id=0, category_id=1, bbox=[1, 2, 30, 40], area=1200,
                              iscrowd=0)], categories=[dict(id=1, name='a')])))
        loaders[f'{split}_dataloader'] = dict(dataset=dict(
            type='CocoDataset', data_root=str(root), ann_file=f'{split}.json',
            data_prefix=dict(img=f'images/{split}/'), metainfo=dict(classes=('a',))))
    _, val = check_config(Config(dict(default_scope='mmdet', model=dict(), **loaders)))
    assert [problem.files[0].count('copy.jpg') for problem in val.problems] == [1]
    assert 'near.jpg ~' in ''.join(val.notes)


def test_a_comparison_of_too_many_images_is_cut_and_says_so(monkeypatch):
    monkeypatch.setattr(check_duplicates, '_MOST_PAIRS', 60)
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 544))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
    train = DatasetReport('train', 't', fingerprints={f't{i}': v for i, v in enumerate(vectors)})
    val = DatasetReport('val', 'v', fingerprints={f't{i}': vectors[i] for i in (0, 7, 39)})
    check_duplicates.report_duplicates([train, val])
    assert 'compared with 20 of the 40 training images' in val.notes[0]
    # The first and the last image are always among those that are compared.
    assert {'t0 = t0', 't39 = t39'} <= set(val.problems[0].files)
