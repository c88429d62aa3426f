"""A resumed run does what the user typed, and says which value of each difference holds."""
import json
from pathlib import Path

import pytest

from tests.tiny_runs import run, write_detection_run, write_run
from visattn_dense.openmmlab.engine.resumed_config import differences, parse_config


def rates(work: Path) -> dict[int, float]:
    """iteration -> learning rate, as logged."""
    found = {}
    for log in sorted(work.glob('*/vis_data/scalars.json')):
        for line in log.read_text().splitlines():
            entry = json.loads(line)
            if 'lr' in entry:
                found[entry['step']] = entry['lr']
    return found


@pytest.fixture(scope='module')
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of four iterations, rate 1e-3 falling to 0 at the fourth."""
    folder = tmp_path_factory.mktemp('begun')
    config = write_run(folder, "train_cfg.update(max_iters=4)\nparam_scheduler[0]['end'] = 4\n")
    done = run('train', folder, config, '--no-validate')
    assert done.code == 0, done.output
    return folder


def resume(begun: Path, folder: Path, *options: str):
    return run('train', folder, begun / 'tiny.py', '--no-validate', '--resume',
               begun / 'work' / 'iter_2.pth', '--work-dir', folder / 'again', *options)


def test_nothing_changed_nothing_said(begun, tmp_path):
    done = resume(begun, tmp_path)
    assert done.code == 0 and ' holds.' not in done.output
    assert rates(tmp_path / 'again') == {step: rates(begun / 'work')[step] for step in (3, 4)}


def test_another_rate_holds(begun, tmp_path):
    done = resume(begun, tmp_path, '--cfg-options', 'optim_wrapper.optimizer.lr=1e-2')
    assert done.code == 0, done.output
    assert ("optim_wrapper.optimizer.lr: 0.001 in the checkpoint, 0.01 in the config; the config's "
            'holds') in done.output
    before = rates(begun / 'work')
    assert before[3] > 0
    assert rates(tmp_path / 'again') == pytest.approx({3: 10 * before[3], 4: 10 * before[4]})


def test_an_extended_schedule_goes_on_as_if_it_had_been_so_long(begun, tmp_path):
    longer = ['--cfg-options', 'train_cfg.max_iters=7', 'param_scheduler.0.end=7']
    done = run('train', tmp_path, begun / 'tiny.py', '--no-validate', '--resume',
               begun / 'work' / 'iter_4.pth', '--work-dir', tmp_path / 'again', *longer)
    assert done.code == 0, done.output
    assert "param_scheduler.0.end: 4 in the checkpoint, 7 in the config; the config's holds" in (
        done.output)
    whole = run('train', tmp_path, begun / 'tiny.py', '--no-validate', '--work-dir',
                tmp_path / 'whole', *longer)
    assert whole.code == 0, whole.output
    expected = rates(tmp_path / 'whole')
    assert rates(tmp_path / 'again') == pytest.approx({step: expected[step] for step in (5, 6, 7)})
    assert expected[5] > expected[6] > 0


def test_a_schedule_without_an_end_of_its_own_ends_with_the_run(tmp_path):
    config = write_run(tmp_path, "train_cfg.update(max_iters=4)\ndel param_scheduler[0]['end']\n")
    assert run('train', tmp_path, config, '--no-validate').code == 0
    longer = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=7']
    done = run('train', tmp_path, config, '--resume', tmp_path / 'work' / 'iter_4.pth',
               '--work-dir', tmp_path / 'again', *longer)
    assert done.code == 0, done.output
    assert run('train', tmp_path, config, '--work-dir', tmp_path / 'whole', *longer).code == 0
    expected = rates(tmp_path / 'whole')
    assert rates(tmp_path / 'again') == pytest.approx({step: expected[step] for step in (5, 6, 7)})
    assert expected[5] > expected[6] > 0


def test_steps_of_epochs_and_of_iterations_keep_their_order(tmp_path):
    """A warm-up by iterations ends in the first epoch, before the first step of the cosine."""
    config = write_detection_run(tmp_path, """
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, by_epoch=False, begin=0, end=3),
    dict(type='CosineAnnealingLR', eta_min=1e-4, by_epoch=True, begin=0, end=6)]
""")
    options = ['--no-validate', '--cfg-options']
    assert run('train', tmp_path, config, *options, 'train_cfg.max_epochs=3').code == 0
    done = run('train', tmp_path, config, '--resume', tmp_path / 'work' / 'epoch_2.pth',
               '--work-dir', tmp_path / 'again', *options, 'optim_wrapper.optimizer.lr=2e-3')
    assert done.code == 0, done.output
    # Two steps of six: three quarters of the way from eta_min to the rate are left.
    assert rates(tmp_path / 'again') == pytest.approx(
        {step: 1e-4 + .75 * (2e-3 - 1e-4) for step in (7, 8, 9)})


def test_another_rate_holds_without_a_schedule(tmp_path):
    config = write_detection_run(tmp_path)
    options = ['--no-validate', '--cfg-options']
    assert run('train', tmp_path, config, *options, 'train_cfg.max_epochs=1').code == 0
    done = run('train', tmp_path, config, '--resume', tmp_path / 'work' / 'epoch_1.pth',
               '--work-dir', tmp_path / 'again', *options, 'train_cfg.max_epochs=2',
               'optim_wrapper.optimizer.lr=1e-2')
    assert done.code == 0, done.output
    assert rates(tmp_path / 'again') == {step: 1e-2 for step in (4, 5, 6)}


def test_a_scheduler_that_follows_a_metric_says_that_it_begins_anew(tmp_path):
    config = write_detection_run(tmp_path, """
param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='coco/bbox_mAP_l', rule='greater',
                        patience=0, threshold_rule='abs', end=9)]
train_cfg['val_interval'] = 1
""")
    assert run('train', tmp_path, config, '--cfg-options', 'train_cfg.max_epochs=3').code == 0
    before = rates(tmp_path / 'work')
    assert before[9] == pytest.approx(before[1] / 10)
    for options, rate, named in (([], before[9], 0),
                                 (['optim_wrapper.optimizer.weight_decay=0.5'], before[1], 1)):
        work = tmp_path / f'again {named}'
        done = run('train', tmp_path, config, '--no-validate', '--resume',
                   tmp_path / 'work' / 'epoch_3.pth', '--work-dir', work, '--cfg-options',
                   'train_cfg.max_epochs=4', *options)
        assert done.code == 0, done.output
        assert done.output.count('begins anew') == named
        assert rates(work)[10] == pytest.approx(rate)


def test_a_scaled_rate_holds(begun, tmp_path):
    done = resume(begun, tmp_path, '--auto-scale-lr')
    assert done.code == 0, done.output
    assert 'auto_scale_lr.enable: False in the checkpoint, True in the config' in done.output
    before = rates(begun / 'work')
    assert rates(tmp_path / 'again') == pytest.approx({3: before[3] / 8, 4: before[4] / 8})


def test_a_rate_that_scales_with_the_batch_holds(begun, tmp_path):
    done = run('train', tmp_path, begun / 'tiny.py', '--no-validate', '--auto-scale-lr')
    assert done.code == 0, done.output
    done = run('train', tmp_path, begun / 'tiny.py', '--no-validate', '--auto-scale-lr', '--resume',
               tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'again',
               '--cfg-options', 'train_dataloader.batch_size=4')
    assert done.code == 0, done.output
    assert "began at 0.000125, the config's begins at 0.00025 with this batch" in done.output
    before = rates(tmp_path / 'work')
    assert before[3] > 0
    assert rates(tmp_path / 'again') == pytest.approx({3: 2 * before[3], 4: 2 * before[4]})


def test_other_data_hold_and_are_named(begun, tmp_path):
    done = resume(begun, tmp_path, '--cfg-options',
                  'train_dataloader.dataset.pipeline.3.prob=0.25')
    assert done.code == 0, done.output
    assert "train_dataloader.dataset.pipeline.3.prob: 0.5 in the checkpoint, 0.25 in the config; " \
        "the config's holds" in done.output
    assert 'brought to iteration' not in done.output
    assert rates(tmp_path / 'again') == {step: rates(begun / 'work')[step] for step in (3, 4)}


@pytest.mark.parametrize('options, words', [
    (['train_cfg.max_iters=1'], 'it has reached iter 2, and train_cfg.max_iters is 1'),
    (['optim_wrapper.optimizer.type=SGD'], 'another optimizer than SGD'),
])
def test_what_cannot_be_meant_is_refused(begun, tmp_path, options, words):
    done = resume(begun, tmp_path, '--cfg-options', *options)
    assert done.code == 2 and words in done.output, done.output
    assert 'load_from=' in done.output and 'Traceback' not in done.output


def test_another_head_is_refused(begun, tmp_path):
    done = resume(begun, tmp_path, '--cfg-options', 'model.decode_head.channels=16')
    assert done.code == 2 and 'Traceback' not in done.output, done.output
    assert 'does not fit EncoderDecoder' in done.output and 'decode_head.convs.0' in done.output


def test_the_text_of_a_config_is_parsed_and_not_run(tmp_path):
    mark = tmp_path / 'run'
    text = (f"a = dict(b=[1, (2, -3)], c=__import__('os').mkdir({str(mark)!r}))\n"
            "d = {'e': None, 'f': 'text'}\n")
    assert parse_config(text) == {
        'a': {'b': [1, [2, -3]], 'c': f"__import__('os').mkdir({str(mark)!r})"},
        'd': {'e': None, 'f': 'text'}}
    assert not mark.exists()
    for broken in ('a = (', '(' * 10_000, 7, None, 'x' * (5 << 20)):
        assert parse_config(broken) is None
    assert differences({'train_cfg': {'x': 1, 'y': [1, 2]}},
                       {'train_cfg': {'x': 1.0, 'y': [1, 3], 'z': 0}}) == {
        'train_cfg.x': (1, 1.0), 'train_cfg.y.1': (2, 3), 'train_cfg.z': ('absent', 0)}
