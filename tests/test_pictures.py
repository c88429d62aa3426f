"""The pictures of a training: what they show, what they cost, and that they change nothing."""
import json
import re
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.logging import HistoryBuffer
from mmengine.registry import DATASETS, MODELS, DefaultScope
from PIL import Image

from tests.test_distributed import as_ranks
from tests.tiny_finetune import (
    DETECTION,
    DETECTION_KNOBS,
    KNOBS,
    SEGMENTATION,
    TINY,
    TINY_DETECTOR,
    write_coco,
    write_config,
    write_weights,
)
from tests.tiny_runs import ROOT, run, write_run
from visattn_dense.openmmlab.config import read_config
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.openmmlab.engine.picture_data import (
    Classes,
    collect_labels,
    seen_images,
    spread_order,
)
from visattn_dense.openmmlab.engine.pictures import Allowance, history, thin_out
from visattn_dense.openmmlab.engine.speed import SpeedHook, remedy
from visattn_dense.openmmlab.engine.validations import best_so_far, read_validations

# Where a sheet of three columns has its cells.
MARGIN, CELL, GAP = 28, 400, 10
PICTURES = {'curve.png', 'labels.png', 'train_batch.jpg'}
WITH_PICTURES = "default_hooks.pop('pictures')\n"
YELLOW = np.array([250, 200, 40])


def drawn(work: Path) -> set[str]:
    return {path.name for path in work.iterdir() if path.suffix in ('.png', '.jpg')}


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert('RGB')).astype(int)


def near(picture: np.ndarray, colour: object, distance: int = 60) -> np.ndarray:
    return np.abs(picture - np.asarray(colour)).sum(-1) < distance


def column(sheet: np.ndarray, number: int) -> np.ndarray:
    left = MARGIN + number * (CELL + GAP)
    return sheet[:, left:left + CELL]


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def write_masks(root: Path, split: str, count: int) -> None:
    """Grey photographs with a yellow box each, and masks that have class 1 there."""
    for kind in ('images', 'masks'):
        (root / kind / split).mkdir(parents=True)
    for number in range(count):
        image, mask = np.full((96, 128, 3), 90, np.uint8), np.zeros((96, 128), np.uint8)
        place = np.s_[12:60, 8 + number:72 + number]
        image[place], mask[place] = YELLOW, 1
        Image.fromarray(image).save(root / 'images' / split / f'{number}.png')
        Image.fromarray(mask).save(root / 'masks' / split / f'{number}.png')


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """UPerNet's config on yellow boxes, and its run: two iterations, resumed for two more."""
    folder = tmp_path_factory.mktemp('upernet')
    for split, count in (('train', 6), ('val', 3)):
        write_masks(folder / 'data', split, count)
    write_weights(folder)
    write_config(SEGMENTATION, folder, TINY, data_root=str(folder / 'data'),
                 classes=['ground', 'box'], **dict(KNOBS, weights=str(folder / 'tiny.pth')))
    return folder


@pytest.fixture(scope='module')
def resumed(folder: Path) -> tuple[Path, str]:
    config = folder / 'configs/mine.py'
    done = run('train', folder, config, '--seed', '3', '--cfg-options', 'train_cfg.max_iters=2')
    assert done.code == 0, done.output
    assert drawn(folder / 'work') == PICTURES | {'val_2.jpg'}
    done = run('train', folder, config, '--seed', '3', '--resume')
    assert done.code == 0, done.output
    return folder / 'work', done.output


def test_sheet_shows_the_truth_where_the_objects_are(resumed):
    work, _ = resumed
    assert drawn(work) == PICTURES | {'val_2.jpg', 'val_4.jpg'}
    _, palette = Classes.of(data_of(work.parent / 'configs/mine.py', 'val'))
    for name in ('val_2.jpg', 'val_4.jpg'):
        sheet = pixels(work / name)
        objects, truth = near(column(sheet, 0), YELLOW), near(column(sheet, 1), palette[1])
        # Three images of 400×300, of which each box has a quarter; the legend shows colours too.
        rows = np.flatnonzero(objects.any(1))
        whole = np.s_[rows[0]:rows[-1] + 1]
        assert objects[whole].sum() > 3 * 0.9 * 400 * 300 / 4
        assert overlap(objects[whole], truth[whole]) > 0.95


def test_curve_of_a_resumed_run_has_both_parts(resumed):
    work, _ = resumed
    assert [entry['iteration'] for entry in read_validations(work)] == [2, 4]
    line = near(pixels(work / 'curve.png'), (37, 99, 176)).any(0)
    width = len(line)
    # The axes begin at iteration 0 and end at 4.
    left, right = 0.085 * width, 0.76 * width
    places = (np.flatnonzero(line[:round(right)]) - left) / (right - left) * 4.04
    assert places.min() == pytest.approx(1, abs=0.15)
    assert places.max() == pytest.approx(4, abs=0.15)


def test_pictures_change_no_weight(folder, resumed):
    """With pictures and interrupted, without pictures and in one go: the same to the bit."""
    done = run('train', folder, folder / 'configs/mine.py', '--seed', '3', '--no-pictures',
               '--work-dir', folder / 'without')
    assert done.code == 0 and 'Pictures' not in done.output, done.output
    assert drawn(folder / 'without') == set()
    ours, theirs = (torch.load(path / 'iter_4.pth', weights_only=False)
                    for path in (resumed[0], folder / 'without'))
    for part in ('state_dict', 'ema_state_dict'):
        assert ours[part].keys() == theirs[part].keys()
        assert all(torch.equal(ours[part][name], theirs[part][name])
                   for name in ours[part] if isinstance(ours[part][name], torch.Tensor))
    # Scores of classes and the speed are no pictures.
    assert [entry['classes'] for entry in read_validations(folder / 'without')] == [
        entry['classes'] for entry in read_validations(resumed[0])]
    assert re.search(r'images/s: [\d.]+  waiting for data: \d+ %', done.output)
    (record,) = (folder / 'without').glob('*/vis_data/scalars.json')
    assert '"images_per_second": ' in record.read_text()


def test_log_says_what_is_next(resumed, folder):
    work, output = resumed
    assert 'Best of each class so far' in output
    last = output[output.index('Done. Pictures in'):]
    for name in (*PICTURES, 'val_4.jpg'):
        assert name in last
    for tool in ('test', 'report', 'infer'):
        assert f'python tools/{tool}.py ' in last
    command = re.search(r'tools/test.py (.*)', last)[1].split()
    assert Path(command[1]).name.startswith('best_mIoU_iter_')
    done = run('test', folder, *command)
    assert done.code == 0, done.output
    tested = re.search(r'Iter\(test\).* mIoU: ([\d.]+)', done.output)[1]
    assert float(tested) == pytest.approx(
        max(entry['metrics']['mIoU'] for entry in read_validations(work)), abs=0.01)


@pytest.fixture(scope='module')
def detector(tmp_path_factory) -> Path:
    """Mask R-CNN's config on coloured boxes, upright and lying."""
    folder = tmp_path_factory.mktemp('mask_rcnn')
    for split, count in (('train', 6), ('val', 2)):
        write_coco(folder / 'parts', split, count)
    write_weights(folder)
    write_config(DETECTION, folder, TINY_DETECTOR, data_root=str(folder / 'parts'),
                 classes=['upright', 'lying'],
                 **dict(DETECTION_KNOBS, weights=str(folder / 'tiny.pth'), max_iters=2))
    return folder


def test_sheet_of_a_detector(detector):
    done = run('train', detector, detector / 'configs/mine.py')
    assert done.code == 0, done.output
    work = detector / 'work'
    assert drawn(work) == PICTURES | {'val_2.jpg'}
    names, palette = Classes.of(data_of(detector / 'configs/mine.py', 'val'))
    sheet = pixels(work / 'val_2.jpg')
    image, truth = column(sheet, 0), column(sheet, 1)
    # The box of image 0 is upright; the picture is 400×300 of 128×96, and the next one below it.
    objects = image[..., 0] - image[..., 1] > 35
    rows = np.flatnonzero(objects.any(1))
    rows = rows[:1 + np.flatnonzero(np.diff(rows) > 1)[0]]
    columns = np.flatnonzero(objects[rows].any(0))
    assert len(columns) == pytest.approx(40 / 128 * 400, abs=4)
    outline = near(truth[:rows[-1] + 5], palette[names.index('upright')], 120)
    found = [np.flatnonzero(outline.any(axis)) for axis in (1, 0)]
    for sides, expected in zip(found, (rows, columns), strict=True):
        assert sides[0] == pytest.approx(expected[0], abs=4)
        assert sides[-1] == pytest.approx(expected[-1], abs=4)
    (entry,) = read_validations(work)
    assert set(entry['classes']) == set(names) and 'coco/segm_mAP' in entry['metrics']
    assert '| upright' in done.output and 'upright_precision' not in done.output


def data_of(config: Path, split: str) -> object:
    cfg = read_config(str(config))
    register_scope(cfg.default_scope)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(cfg[f'{split}_dataloader'].dataset)


def seen(config: Path, count: int, width: int) -> list:
    """Training images of a config after augmentation and preprocessing."""
    cfg = read_config(str(config))
    dataset = data_of(config, 'train')
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        preprocessor = MODELS.build(cfg.model.data_preprocessor)
        np.random.seed(4)
        batch = pseudo_collate([dataset[index % len(dataset)] for index in range(count)])
        return seen_images(preprocessor, preprocessor(batch, True), count, width)


def test_truth_lies_on_the_objects_as_the_network_sees_them(folder, detector):
    found = 0
    for image, truth in seen(folder / 'configs/mine.py', 12, 64):
        # Colours were distorted: yellow stays far from grey.
        coloured = np.ptp(image.astype(int), -1) > 60
        if 200 < coloured.sum() < 0.8 * coloured.size and (truth == 255).sum() == 0:
            assert overlap(coloured, truth == 1) > 0.8
            found += 1
    assert found >= 3
    images = seen(detector / 'configs/mine.py', 6, 160)
    assert len(images) == 6
    for image, truth in images:
        # The boxes are as red as can be; blue differs.
        coloured = image[..., 0] > 170
        (mask,), (box,) = truth.masks, truth.boxes
        assert overlap(coloured, mask) > 0.85
        y, x = np.nonzero(coloured)
        assert box == pytest.approx([x.min(), y.min(), x.max() + 1, y.max() + 1], abs=3)
    # Objects keep their colour: red and blue are not exchanged.
    assert image[coloured].mean(0)[0] > image[coloured].mean(0)[2]


def test_labels_are_counted(folder, detector):
    labels = collect_labels(data_of(folder / 'configs/mine.py', 'train'), seconds=60)
    assert labels.pixels.tolist() == [6 * (96 * 128 - 48 * 64), 6 * 48 * 64]
    assert labels.images.tolist() == [6, 6] and (labels.seen, labels.total) == (6, 6)
    objects = collect_labels(data_of(detector / 'configs/mine.py', 'train'), seconds=60)
    assert sorted(objects.classes.tolist()) == [0, 0, 0, 1, 1, 1]
    assert {tuple(size) for size in objects.sizes} == {(128, 96)}
    sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
    assert {tuple(side) for side in sides[objects.classes == 0]} == {(40, 64)}
    # Time is over after the first image.
    assert collect_labels(data_of(folder / 'configs/mine.py', 'train'), seconds=0).seen == 1
    assert sorted(spread_order(100)) == list(range(100))
    assert np.diff(sorted(spread_order(100)[:10])).max() < 20


def test_a_picture_that_cannot_be_written_ends_no_training(tmp_path):
    config = write_run(tmp_path, WITH_PICTURES)
    for name in (*PICTURES, 'val_4.jpg'):
        (tmp_path / 'work' / name / 'in the way').mkdir(parents=True)
    done = run('train', tmp_path, config)
    assert done.code == 0, done.output
    for name in (*PICTURES, 'val_ITER.jpg'):
        assert done.output.count(f'{name} could not be drawn') == 1, done.output
    assert (tmp_path / 'work/iter_8.pth').is_file()


def test_pictures_hold_back_and_the_last_ones_are_drawn(tmp_path):
    config = write_run(tmp_path, "default_hooks['pictures'] = dict(type='PicturesHook', share=0., "
                       "free_seconds=0.)\ntrain_cfg.update(val_interval=2, max_iters=6)\n")
    done = run('train', tmp_path, config)
    assert done.code == 0, done.output
    assert done.output.count('fewer are drawn from here') == 1
    assert drawn(tmp_path / 'work') == PICTURES | {'val_6.jpg'}


def test_time_is_bounded_by_the_time_of_the_run():
    now = [0.]
    allowance = Allowance(0.02, 6., clock=lambda: now[0])
    assert allowance.allows('curve')
    allowance.spend('curve', 4.)
    # Another one of 4 s is too much at first; 8 s are 2 % of 400 s.
    assert not allowance.allows('curve') and allowance.allows('sheet')
    now[0] = 399.
    assert not allowance.allows('curve')
    now[0] = 401.
    assert allowance.allows('curve')


def test_first_rank_alone_draws(tmp_path):
    config = write_run(tmp_path, WITH_PICTURES + '''
custom_imports['imports'] += ['tests.tiny_modules']
custom_hooks = [dict(type='DrawnHook')]
train_cfg.update(max_iters=2, val_interval=2)
''')
    ranks = as_ranks(tmp_path, config)
    assert [rank.code for rank in ranks] == [0, 0], ranks
    by_rank = [json.loads((tmp_path / f'work/drawn_{rank}.json').read_text()) for rank in (0, 1)]
    assert set(by_rank[0][0]) == PICTURES | {'val_2.jpg'} and by_rank[1] == [[]]


def test_sheets_are_thinned_out(tmp_path):
    for iteration in range(1, 41):
        (tmp_path / f'val_{10 * iteration}.jpg').touch()
        for path in thin_out(tmp_path, 5):
            path.unlink()
    left = sorted(int(path.stem[4:]) for path in tmp_path.iterdir())
    assert len(left) == 5 and left[0] == 10 and left[-1] == 400
    assert min(np.diff(left)) > 30
    (tmp_path / 'val_mine.jpg').touch()
    assert thin_out(tmp_path, 5) == []


def test_history_of_a_long_run_is_averaged():
    losses = HistoryBuffer(np.arange(10000.), np.ones(10000))
    entries = history({'train/loss': losses, 'train/lr': losses, 'val/mIoU': losses}, 12000)
    assert 1000 < len(entries) <= 2000
    assert entries[-1] == dict(iter=12000, loss=np.arange(9995, 10000).mean(),
                               lr=np.arange(9995, 10000).mean())
    assert history({}, 5) == []


def test_best_of_each_class():
    entries = [dict(iteration=10, metrics={}, classes=dict(a=30., b=None, c=5.)),
               dict(iteration=20, metrics={}, classes=dict(a=20., b=1., c=None))]
    text = best_so_far(entries)
    assert '1 of 3' in text
    assert re.search(r'a +20 +30 +10', text) and re.search(r'c +- +5 +10', text)
    assert 'all in this validation' in best_so_far(entries[:1])


def test_damaged_record_of_validations_is_left_out(tmp_path):
    assert read_validations(tmp_path) == []
    (tmp_path / 'validations.json').write_text('[{"iteration": 5, "metr')
    assert read_validations(tmp_path) == []
    (tmp_path / 'validations.json').write_text(
        '[{"iteration": 5}, {"iteration": 6, "metrics": {}, "classes": {"a": 1.5}}]')
    assert [entry['iteration'] for entry in read_validations(tmp_path)] == [6]


class _Loader:
    num_workers = 0


class _Runner:
    train_dataloader = _Loader


def test_wait_for_data_is_told_from_work(monkeypatch, caplog):
    monkeypatch.setattr('visattn_dense.openmmlab.engine.speed._LEAST_SECONDS', 0.)
    hook = SpeedHook()
    hook.before_train(_Runner)
    for _ in range(22):
        time.sleep(0.004)
        hook.before_train_iter(_Runner, 0)
        time.sleep(0.002)
        hook.after_train_iter(_Runner, 0)
    hook.after_val(_Runner)
    _, share = hook.measured()
    assert 0.4 < share < 0.9
    (message,) = (line for line in caplog.messages if 'wait for data' in line)
    assert 'train_dataloader.num_workers=' in message
    # A validation is no wait.
    time.sleep(0.5)
    hook.after_val(_Runner)
    hook.before_train_iter(_Runner, 0)
    hook.after_train_iter(_Runner, 0)
    assert hook.measured()[0] < 0.1


def test_remedy_fits_the_machine():
    assert 'num_workers=4' in remedy(0, 16) and 'num_workers=1' in remedy(0, 1)
    assert 'num_workers=8' in remedy(4, 16)
    assert 'store the images' in remedy(16, 16)


def test_tensorboard_that_is_not_installed_is_said_before_the_start(tmp_path):
    config = write_run(tmp_path, "visualizer = dict(type='SegLocalVisualizer')\n")
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        done = run('train', tmp_path, config, '--tensorboard')
        assert done.code == 2 and "pip install 'visattn-dense[tensorboard]'" in done.output
        return
    done = run('train', tmp_path, config, '--tensorboard', '--no-validate')
    assert done.code == 0 and 'tensorboard --logdir' in done.output, done.output
    assert list((tmp_path / 'work').rglob('events.out.tfevents.*'))


@pytest.mark.parametrize('package', [None, 'wandb', 'mlflow'])
def test_two_lines_choose_another_backend(tmp_path, package):
    """docs/training.md, its lines; what they name is tried where it is installed."""
    text = (ROOT / 'docs/training.md').read_text()
    blocks = re.findall(r'^```python\n(vis_backends.*?)^```', text, re.M | re.S)
    lines = {name: block for block in blocks for name in ('wandb', 'mlflow')
             if name in block.lower()}
    assert len(lines) == 2
    chosen = lines[package or 'wandb']
    if package is None:
        # The lines do not name the kind of the visualizer.
        chosen = re.sub(r", dict\(type='Wandb.*\)\]", ']', chosen)
        assert 'andb' not in chosen
    else:
        pytest.importorskip(package)
    # Nothing may be left in the folder of the checkout.
    chosen = chosen.replace(
        "'sqlite:///", f"'sqlite:///{tmp_path}/").replace(
        "exp_name='mine'", f"exp_name='mine', artifact_location='{tmp_path}/artifacts'")
    config = write_run(tmp_path, f'{chosen}train_cfg.update(max_iters=2)\n')
    done = run('train', tmp_path, config, '--no-validate', WANDB_MODE='offline')
    assert done.code == 0, done.output
    if package == 'wandb':
        assert list((tmp_path / 'work').rglob('run-*.wandb'))
    if package == 'mlflow':
        with sqlite3.connect(tmp_path / 'mlflow.db') as base:
            (losses,) = base.execute("select count(*) from metrics where key = 'loss'").fetchone()
            assert losses == 2
