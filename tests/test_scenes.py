"""The rendered street scenes: exact labels, instances, both layouts on disk, nothing deleted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from demo.scenes import (
    KINDS,
    LABEL_NAMES,
    PALETTE,
    coco_categories,
    render_scene,
    scene_seed,
    write_dataset,
)
from visattn_dense.errors import UserError

ROOT = Path(__file__).parent.parent
ENVIRONMENT = dict(os.environ, PYTHONPATH=str(ROOT))
SMALL = (72, 101)


@pytest.fixture(scope='module')
def scenes():
    return [render_scene(scene_seed(3, 'train', i), SMALL) for i in range(20)]


@pytest.fixture(scope='module')
def rendered(tmp_path_factory):
    root = tmp_path_factory.mktemp('scenes') / 'new'
    assert write_dataset(root, 4, 3, SMALL, seed=3, progress=False)
    return root


def snapshot(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes()
            for p in sorted(root.rglob('*')) if p.is_file()}


def test_same_seed_same_bytes():
    first, again, other = (render_scene(seed, SMALL) for seed in (11, 11, 12))
    assert first.image.tobytes() == again.image.tobytes()
    assert first.label.tobytes() == again.label.tobytes()
    assert [i.bbox for i in first.instances] == [i.bbox for i in again.instances]
    assert first.image.tobytes() != other.image.tobytes()


@pytest.mark.parametrize('size', [(48, 48), (53, 131), (192, 256), (211, 97)])
def test_any_size(size):
    scene = render_scene(5, size)
    assert scene.image.shape == (*size, 3) and scene.image.dtype == np.uint8
    assert scene.label.shape == size and scene.label.dtype == np.uint8
    assert all(i.mask.shape == size and i.mask.dtype == bool for i in scene.instances)


def test_labels_come_from_the_table(scenes):
    seen = set().union(*(np.unique(scene.label).tolist() for scene in scenes))
    assert seen <= set(LABEL_NAMES)
    assert {KINDS[name].ade_index for name in ('sky', 'road', 'tree', 'building', 'car',
                                               'person')} <= seen
    assert set(PALETTE) == set(LABEL_NAMES)


def test_ade20k_indices_agree_with_mmseg():
    ade = pytest.importorskip('mmseg.datasets.ade')
    names = ade.ADE20KDataset.METAINFO['classes']
    for index, name in LABEL_NAMES.items():
        assert index == 0 or names[index - 1].strip() == name


def test_coco_categories_agree_with_mmdet():
    coco = pytest.importorskip('mmdet.datasets.coco')
    categories = coco_categories()
    assert tuple(c['name'] for c in categories) == coco.CocoDataset.METAINFO['classes']
    # Ids on both sides of every gap in the official numbering.
    ids = {c['name']: c['id'] for c in categories}
    assert [ids[n] for n in ('person', 'fire hydrant', 'stop sign', 'cow', 'backpack', 'umbrella',
                             'handbag', 'bottle', 'wine glass', 'bed', 'dining table', 'toilet',
                             'tv', 'refrigerator', 'book', 'toothbrush')] == [
        1, 11, 13, 21, 27, 28, 31, 44, 46, 65, 67, 70, 72, 82, 84, 90]


def test_instances_agree_with_labels(scenes):
    index = {kind.coco: kind.ade_index for kind in KINDS.values() if kind.coco}
    assert sum(len(scene.instances) for scene in scenes) > 30
    labelled = missed = 0
    for scene in scenes:
        covered = np.zeros(SMALL, int)
        for instance in scene.instances:
            assert np.unique(scene.label[instance.mask]).tolist() == [index[instance.category]]
            assert instance.mask.sum() >= 16
            x, y, w, h = instance.bbox
            assert instance.mask[y:y + h, x:x + w].sum() == instance.mask.sum()
            assert instance.mask[y].any() and instance.mask[y + h - 1].any()
            assert instance.mask[:, x].any() and instance.mask[:, x + w - 1].any()
            covered += instance.mask
        assert covered.max() <= 1
        car = scene.label == index['car']
        labelled += car.sum()
        missed += (car & (covered == 0)).sum()
    # Labelled as a car and part of none: only what was too small to count.
    assert labelled > 0 and missed < 0.1 * labelled


def test_crowds_and_empty_scenes_occur(scenes):
    crowds = [i for scene in scenes for i in scene.instances if i.crowd]
    assert crowds and {i.category for i in crowds} == {'person'}
    assert any(not scene.instances for scene in scenes)


def test_pictures_are_not_flat(scenes):
    # Within one label, a flat rendering would have next to no variation around each pixel.
    for scene in scenes[:10]:
        grey = cv2.cvtColor(scene.image, cv2.COLOR_RGB2GRAY).astype(float)
        assert np.abs(np.diff(grey, axis=1)).mean() > 1.5
        assert len(np.unique(scene.image.reshape(-1, 3), axis=0)) > 1000


@pytest.mark.parametrize('seed, size', [(-1, SMALL), (0, (20, 100)), (0, (100,))])
def test_bad_scene_parameters(seed, size):
    with pytest.raises(ValueError, match='got'):
        render_scene(seed, size)


def test_ade_layout(rendered):
    for split, coco, count in (('training', 'train', 4), ('validation', 'val', 3)):
        images = sorted((rendered / 'ade/images' / split).iterdir())
        labels = sorted((rendered / 'ade/annotations' / split).iterdir())
        assert [p.stem for p in images] == [p.stem for p in labels]
        assert len(images) == count and images[0].name == 'scene_00000.jpg'
        for i, path in enumerate(labels):
            scene = render_scene(scene_seed(3, coco, i), SMALL)
            assert np.array_equal(cv2.imread(str(path), cv2.IMREAD_UNCHANGED), scene.label)
        stored = cv2.imread(str(images[0]))[..., ::-1].astype(int)
        first = render_scene(scene_seed(3, coco, 0), SMALL).image
        assert np.abs(stored - first).mean() < 6
    train, val = (rendered / f'ade/images/{s}/scene_00000.jpg' for s in ('training', 'validation'))
    assert train.read_bytes() != val.read_bytes()


@pytest.mark.parametrize('split, ade', [('train', 'training'), ('val', 'validation')])
def test_coco_layout(rendered, split, ade, capsys):
    from pycocotools.coco import COCO
    coco = COCO(str(rendered / f'coco/annotations/instances_{split}2017.json'))
    assert len(coco.cats) == 80 and len(coco.anns) > 0
    for index, image_id in enumerate(sorted(coco.imgs)):
        image = coco.imgs[image_id]
        picture = rendered / f'coco/{split}2017' / image['file_name']
        twin = rendered / 'ade/images' / ade / image['file_name']
        assert picture.read_bytes() == twin.read_bytes()
        scene = render_scene(scene_seed(3, split, index), SMALL)
        entries = coco.imgToAnns[image_id]
        assert len(entries) == len(scene.instances)
        for entry, instance in zip(entries, scene.instances, strict=True):
            assert (image['height'], image['width']) == SMALL
            assert np.array_equal(coco.annToMask(entry).astype(bool), instance.mask)
            assert coco.cats[entry['category_id']]['name'] == instance.category
            assert entry['area'] == instance.mask.sum()
            assert tuple(entry['bbox']) == instance.bbox
            assert entry['iscrowd'] == instance.crowd


def test_crowd_is_written_as_run_lengths(tmp_path):
    from demo.scenes.dataset import _plain_rle
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert _plain_rle(mask) == dict(size=[2, 3], counts=[2, 1, 1, 2])
    assert _plain_rle(~mask) == dict(size=[2, 3], counts=[0, 2, 1, 1, 2])


def test_complete_folder_is_left_alone(rendered):
    before = {p: p.stat().st_mtime_ns for p in rendered.rglob('*')}
    assert not write_dataset(rendered, 4, 3, SMALL, seed=3, progress=False)
    assert {p: p.stat().st_mtime_ns for p in rendered.rglob('*')} == before


def test_half_written_folder_is_rendered_again(tmp_path):
    root = tmp_path / 'data'
    write_dataset(root, 3, 2, SMALL, seed=1, progress=False)
    whole = snapshot(root)
    # As a kill leaves it: the start mark and some of the files, one cut short.
    (root / 'scenes.json').unlink()
    (root / 'scenes.started').touch()
    (root / 'ade/images/training/scene_00001.jpg').write_bytes(b'')
    (root / 'coco/annotations/instances_val2017.json').unlink()
    assert write_dataset(root, 3, 2, SMALL, seed=1, progress=False)
    assert snapshot(root) == whole


def test_kill_while_rendering(tmp_path):
    root = tmp_path / 'data'
    code = ('import os, demo.scenes.dataset as d\n'
            'draw = d.render_scene\n'
            'def dying(seed, size):\n'
            '    if seed == d.scene_seed(0, "train", 2): os._exit(9)\n'
            '    return draw(seed, size)\n'
            'd.render_scene = dying\n'
            f'd.write_dataset({str(root)!r}, 3, 1, {SMALL}, progress=False)')
    assert subprocess.run([sys.executable, '-c', code], cwd=ROOT,
                          env=ENVIRONMENT).returncode == 9
    assert (root / 'ade/images/training/scene_00001.jpg').exists()
    assert write_dataset(root, 3, 1, SMALL, progress=False)
    assert len(list((root / 'ade/annotations/training').iterdir())) == 3
    assert not (root / 'scenes.started').exists()


def test_other_parameters_replace_the_data(tmp_path):
    root = tmp_path / 'data'
    write_dataset(root, 3, 2, SMALL, progress=False)
    assert write_dataset(root, 2, 1, SMALL, progress=False)
    assert len(list((root / 'ade/images/training').iterdir())) == 2
    assert json.loads((root / 'scenes.json').read_text())['num_train'] == 2


@pytest.mark.parametrize('foreign', ['notes.txt', 'scenes.json', 'ade/images/training/mine.jpg'])
@pytest.mark.parametrize('ours_too', [False, True])
def test_foreign_folder_is_refused(tmp_path, foreign, ours_too):
    if ours_too:
        write_dataset(tmp_path, 2, 1, SMALL, progress=False)
    path = tmp_path / foreign
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('mine')
    before = snapshot(tmp_path)
    with pytest.raises(UserError, match=path.name):
        write_dataset(tmp_path, 1, 1, SMALL, progress=False)
    assert snapshot(tmp_path) == before


def test_unmarked_folder_of_the_same_names_is_refused(tmp_path):
    path = tmp_path / 'ade/images/training/scene_00000.jpg'
    path.parent.mkdir(parents=True)
    path.write_bytes(b'precious')
    with pytest.raises(UserError, match='did not write'):
        write_dataset(tmp_path, 1, 1, SMALL, progress=False)
    assert path.read_bytes() == b'precious'


@pytest.mark.parametrize('bad', [dict(num_train=0), dict(num_val=-1), dict(size=(10, 10)),
                                 dict(seed=-2)])
def test_bad_numbers_write_nothing(tmp_path, bad):
    with pytest.raises(UserError, match='got'):
        write_dataset(tmp_path / 'data', **(dict(num_train=1, num_val=1) | bad))
    assert not (tmp_path / 'data').exists()


def test_command_line(tmp_path):
    command = [sys.executable, '-m', 'demo.scenes', str(tmp_path / 'data'), '--train', '2',
               '--val', '1', '--size', '64', '80', '--sheet', str(tmp_path / 'out/sheet.png')]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '2 training and 1 validation' in done.stdout
    assert cv2.imread(str(tmp_path / 'out/sheet.png')).shape == (64, 2 * 3 * 80, 3)
    (tmp_path / 'data/mine.txt').write_text('mine')
    command[command.index('--train') + 1] = '1'
    refused = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True)
    assert refused.returncode != 0 and 'Traceback' not in refused.stderr
    assert refused.stderr.startswith('error: ') and 'mine.txt' in refused.stderr
