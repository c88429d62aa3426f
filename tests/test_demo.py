"""python -m demo segmentation from nothing to pictures, with a handful of iterations."""
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from demo.__main__ import main
from demo.scenes import KINDS
from demo.segmentation import Scores
from visattn_dense.errors import UserError
from visattn_dense.visualization import (
    Row,
    colourise,
    draw_curve,
    draw_sheet,
    overlay,
    read_scalars,
)
from visattn_dense.visualization.progress import ProgressLine

ROOT = Path(__file__).resolve().parents[1]
PALETTE = [(10, 20, 30), (200, 0, 0), (0, 200, 0)]


def test_demo_trains_evaluates_and_draws_twice(tmp_path, capsys):
    arguments = ['segmentation', '--iters', '4', '--train-scenes', '4', '--val-scenes', '2',
                 '--work-dir', str(tmp_path)]
    done = subprocess.run([sys.executable, '-m', 'demo', *arguments], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ('val_4.jpg', 'curve.png', 'labels.png', 'train_batch.jpg'):
        assert str(tmp_path / 'run' / name) in done.stdout
        assert min(Image.open(tmp_path / 'run' / name).size) > 400
    assert 'sky' in done.stdout and 'mIoU' in done.stdout and '4/4  loss' in done.stdout
    scores = json.loads((tmp_path / 'run/demo.json').read_text())
    # The number that mmseg's own evaluation gave at the end of the training.
    record = next((tmp_path / 'run').glob('*/vis_data/scalars.json'))
    assert read_scalars(record)[-1]['mIoU'] == pytest.approx(scores['miou'], abs=0.02)

    pictures = sorted((tmp_path / 'data').rglob('*.jpg'))
    times = [path.stat().st_mtime_ns for path in pictures]
    assert main(arguments) == 0 and 'there already' in capsys.readouterr().out
    assert [path.stat().st_mtime_ns for path in pictures] == times
    assert (tmp_path / 'run.earlier/demo.json').is_file()
    # The same seed trains the same model.
    assert json.loads((tmp_path / 'run/demo.json').read_text())['iou'] == scores['iou']


@pytest.mark.parametrize('arguments, message', [
    (('--iters', '1'), '--iters is at least'), (('--train-scenes', '0'), 'number of scenes'),
])
def test_bad_arguments_are_one_message(tmp_path, capsys, arguments, message):
    assert main(['segmentation', *arguments, '--work-dir', str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_run_folder_of_somebody_else_is_left_alone(tmp_path, capsys):
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'thesis.txt').write_text('three years of work')
    assert main(['segmentation', '--work-dir', str(tmp_path)]) == 2
    assert 'not of this demo' in capsys.readouterr().err
    assert (tmp_path / 'run' / 'thesis.txt').read_text() == 'three years of work'


def test_config_names_every_class_of_the_scenes():
    classes = runpy.run_path(str(ROOT / 'demo/configs/demo_upernet_cswin_scenes.py'))['metainfo']
    shown = {kind.name for kind in KINDS.values()} - {'other', 'stop sign'}
    assert set(classes['classes']) == shown
    assert len(classes['palette']) == len(set(map(tuple, classes['palette']))) == len(shown)


def test_best_constant_predictor_by_hand():
    result = Scores(np.array([50., 25., np.nan]), np.array([60., 40., 0.]), 0, 70.)
    assert result.miou == 37.5
    # Class 0 everywhere: IoU 60 for it, 0 for the other one that is there.
    assert result.constant_miou == 30.


def test_progress_line_reads_a_record_that_is_being_written(tmp_path):
    out, now = io.StringIO(), iter(range(0, 1000, 10))
    line = ProgressLine(tmp_path, 100, out, clock=lambda: next(now))
    line.update()
    record = tmp_path / '20260101_000000' / 'vis_data' / 'scalars.json'
    record.parent.mkdir(parents=True)
    record.write_text('{"iter": 10, "loss": 2.5}\n')
    line.update()
    record.write_text('{"iter": 10, "loss": 2.5}\n{"step": 10, "mIoU": 12.3}\n'
                      '{"iter": 30, "loss": 1.5}\n{"iter": 40, "lo')
    line.update()
    line.update()
    line.close(finished=True)
    lines = out.getvalue().splitlines()
    # Twenty iterations took the clock's ten seconds: seventy take 35. Nothing new, no new line.
    assert len(lines) == 4 and '100/100' in lines[3]
    assert lines[2].endswith('30/100  loss 1.50  mIoU 12.3  0:35 left')


def test_overlay_leaves_unlabelled_pixels_bare():
    image = np.full((2, 3, 3), 100, np.uint8)
    label = np.array([[0, 1, 255], [2, 7, 1]])
    painted = overlay(image, label, PALETTE, opacity=1.)
    assert painted[0, 0].tolist() == [10, 20, 30] and painted[1, 0].tolist() == [0, 200, 0]
    assert painted[0, 2].tolist() == painted[1, 1].tolist() == [100, 100, 100]
    assert overlay(image, label, PALETTE, opacity=0.5)[0, 1].tolist() == [150, 50, 50]
    with_legend = overlay(image, label, PALETTE, names=['a', 'b', 'c'])
    assert with_legend.shape[0] > 2 and with_legend.shape[1] >= 160
    with pytest.raises(ValueError, match='same height'):
        overlay(image, label.T, PALETTE)
    assert colourise(label, PALETTE)[0, 2].tolist() == [0, 0, 0]


def test_sheet_shows_truth_beside_prediction():
    truth, prediction = np.ones((20, 30), int), np.full((20, 30), 2)
    row = Row(np.zeros((20, 30, 3), np.uint8), truth, prediction)
    sheet = np.asarray(draw_sheet([row, row], ['a', 'b', 'c'], PALETTE, title='t', cell_width=90))
    red = np.argwhere((sheet == PALETTE[1]).all(-1))
    green = np.argwhere((sheet == PALETTE[2]).all(-1))
    # Two rows of 90×60 each, and a swatch in the legend.
    assert len(red) > 2 * 90 * 60 and len(green) > 2 * 90 * 60
    assert np.median(red[:, 1]) < np.median(green[:, 1])
    with pytest.raises(ValueError, match='row 0'):
        draw_sheet([Row(row.image, truth, prediction.T)], ['a', 'b', 'c'], PALETTE)


def test_an_evaluation_stands_at_its_iteration(tmp_path):
    """Where mmengine writes the epoch of an evaluation, and where it writes the iteration."""
    lines = [dict(iter=50, epoch=1, loss=2., step=50), dict(mIoU=1., step=1),
             dict(iter=100, epoch=2, loss=1., step=100), dict(mIoU=2., step=2),
             dict(mIoU=3., step=120)]
    path = tmp_path / 'scalars.json'
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    assert [entry['step'] for entry in read_scalars(path)] == [50, 50, 100, 100, 120]


def test_curve_draws_and_refuses_an_empty_record(tmp_path):
    entries = [{'iter': i, 'loss': 3 / (i + 1)} for i in range(20)] + [{'step': 20, 'mIoU': 31.}]
    draw_curve(tmp_path / 'curve.png', entries)
    assert min(Image.open(tmp_path / 'curve.png').size) > 400
    with pytest.raises(UserError, match='no loss'):
        draw_curve(tmp_path / 'none.png', [])
    with pytest.raises(UserError, match='no training record'):
        read_scalars(tmp_path / 'absent.json')
