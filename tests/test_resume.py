"""A run that is killed, at whatever moment, and resumed is the run that was never killed."""
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import BatchSampler

from tests.tiny_runs import Child, logged_losses, run, write_detection_run, write_run
from visattn_dense.atomic import write_text_whole, written_whole
from visattn_dense.openmmlab.engine import DenseRunner
from visattn_dense.openmmlab.engine.data_stream import enter_at, numbered
from visattn_dense.openmmlab.engine.resume import find_resumable

# A checkpoint that takes a moment to write.
SLOW_SAVE = '''
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
custom_hooks = [dict(type='BallastHook')]
'''


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location='cpu', weights_only=False)['state_dict']


def assert_same_run(work: Path, reference: Path, last: str, after: int) -> None:
    """The same losses from iteration `after` on and the same weights in the end, to the bit."""
    expected = {step: loss for step, loss in logged_losses(reference).items() if step > after}
    assert len(expected) > 1 and len(set(expected.values())) == len(expected)
    resumed = logged_losses(work)
    assert {step: resumed[step] for step in expected} == expected
    ours, theirs = weights(work / last), weights(reference / last)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope='module')
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of eight iterations that nothing interrupted."""
    folder = tmp_path_factory.mktemp('reference')
    done = run('train', folder, write_run(folder))
    assert done.code == 0, done.output
    return folder


def test_killed_between_saves(reference: Path, tmp_path: Path) -> None:
    """With worker processes, which the reference does not have."""
    loading = ['--cfg-options', 'train_dataloader.num_workers=2',
               'train_dataloader.persistent_workers=True']
    config = reference / 'tiny.py'
    child = Child('train', tmp_path, config, *loading)
    killed = child.kill_when(lambda: 5 in logged_losses(tmp_path / 'work'))
    assert killed.code == -9
    done = run('train', tmp_path, config, '--resume', *loading)
    assert done.code == 0, done.output
    assert 'Resuming from' in done.output
    assert_same_run(tmp_path / 'work', reference / 'work', 'iter_8.pth', after=4)


def test_killed_while_saving(reference: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, SLOW_SAVE)
    work = tmp_path / 'work'
    temporary, final = work / '.iter_6.pth.tmp', work / 'iter_6.pth'
    for _ in range(5):
        shutil.rmtree(work, ignore_errors=True)
        Child('train', tmp_path, config).kill_when(temporary.exists)
        if temporary.exists():
            break
    assert temporary.exists() and not final.exists(), 'the kill never hit the save'
    assert (work / 'last_checkpoint').read_text() == str(work / 'iter_4.pth')
    done = run('train', tmp_path, config, '--resume')
    assert done.code == 0, done.output
    assert f'Resuming from {work / "iter_4.pth"}' in done.output
    assert not temporary.exists()
    assert_same_run(work, reference / 'work', 'iter_8.pth', after=4)


def cut_off(checkpoint: Path, trap: Path) -> None:
    """As a full disk leaves it."""
    whole = checkpoint.read_bytes()
    checkpoint.write_bytes(whole[:len(whole) // 2])


def flip_a_byte(checkpoint: Path, trap: Path) -> None:
    contents = bytearray(checkpoint.read_bytes())
    contents[len(contents) // 2] ^= 0xFF
    checkpoint.write_bytes(contents)


def run_code(checkpoint: Path, trap: Path) -> None:
    """Whoever unpickles it makes the file `trap`."""
    torch.save({'meta': dict(iter=6), 'state_dict': Trap(str(trap))}, checkpoint)


def copy_checkpoint(reference: Path, work: Path, step: int, name: str | None = None) -> Path:
    work.mkdir(exist_ok=True)
    return Path(shutil.copy(reference / 'work' / f'iter_{step}.pth',
                            work / (name or f'iter_{step}.pth')))


@pytest.mark.parametrize('damage', [cut_off, flip_a_byte, run_code])
def test_a_damaged_checkpoint_is_passed_over(damage: Callable[[Path, Path], None],
                                             reference: Path, tmp_path: Path) -> None:
    work, trap = tmp_path / 'work', tmp_path / 'executed'
    older, newer = (copy_checkpoint(reference, work, step) for step in (4, 6))
    damage(newer, trap)
    (work / 'last_checkpoint').write_text(str(newer))
    done = run('train', tmp_path, reference / 'tiny.py', '--resume', '--no-validate',
               '--cfg-options', 'train_cfg.max_iters=5')
    assert done.code == 0, done.output
    assert f'Passed over: {newer}' in done.output
    assert f'Resuming from {older}' in done.output
    assert not trap.exists()


def test_goes_on_from_the_newest_that_loads(reference: Path, tmp_path: Path) -> None:
    """`last_checkpoint` names a file that is gone; of those left the three newest are damaged."""
    work = tmp_path / 'work'
    whole = copy_checkpoint(reference, work, 4)
    damaged = [copy_checkpoint(reference, work, 6, f'iter_{step}.pth') for step in (6, 7, 8)]
    for path in damaged:
        cut_off(path, tmp_path)
    for second, path in enumerate([whole, *damaged]):
        os.utime(path, (1e9 + second, 1e9 + second))
    gone = work / 'iter_9.pth'
    (work / 'last_checkpoint').write_text(str(gone))
    done = run('train', tmp_path, reference / 'tiny.py', '--resume')
    assert done.code == 0, done.output
    assert f'last_checkpoint names {gone}, which is not there' in done.output
    for path in damaged:
        assert f'Passed over: {path}' in done.output
    assert f'Resuming from {whole}' in done.output
    assert_same_run(work, reference / 'work', 'iter_8.pth', after=4)


def test_a_published_copy_is_no_checkpoint_to_resume_from(reference: Path, tmp_path: Path) -> None:
    """mmengine writes it last: the weights, and the iteration, without the optimizer's state."""
    options = ['--no-validate', '--cfg-options', 'default_hooks.checkpoint.published_keys=[meta,'
               'state_dict]', 'default_hooks.checkpoint.interval=4']
    config, work = reference / 'tiny.py', tmp_path / 'work'
    assert run('train', tmp_path, config, *options, 'train_cfg.max_iters=4').code == 0
    assert len(list(work.glob('iter_4-*.pth'))) == 1
    done = run('train', tmp_path, config, '--resume', *options)
    assert done.code == 0, done.output
    assert f'Resuming from {work / "iter_4.pth"}' in done.output
    assert_same_run(work, reference / 'work', 'iter_8.pth', after=4)


class Trap:
    """An object whose unpickling makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (self.path, 'w')


# A run of one iteration.
SHORT = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=1']


def test_nothing_to_resume_from(reference: Path, tmp_path: Path) -> None:
    done = run('train', tmp_path, reference / 'tiny.py', '--resume', *SHORT)
    assert done.code == 0 and 'starting from the beginning' in done.output


def test_nothing_to_resume_from_but_weights(reference: Path, tmp_path: Path) -> None:
    """A run that is always started with --resume begins with the weights that it was given."""
    done = run('train', tmp_path, reference / 'tiny.py', '--resume', *SHORT,
               f'load_from={reference / "work" / "iter_8.pth"}')
    assert done.code == 0 and 'Load checkpoint from' in done.output
    assert 'Resuming' not in done.output


def test_nothing_but_damaged_checkpoints(reference: Path, tmp_path: Path) -> None:
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'iter_1.pth').write_bytes(b'not a checkpoint')
    done = run('train', tmp_path, reference / 'tiny.py', '--resume', *SHORT)
    assert done.code == 2 and 'none of the 1 checkpoints' in done.output


def test_a_checkpoint_that_is_not_there(reference: Path, tmp_path: Path) -> None:
    gone = tmp_path / 'gone.pth'
    done = run('train', tmp_path, reference / 'tiny.py', '--resume', gone, *SHORT)
    assert done.code == 2 and f'no checkpoint {gone}' in done.output


@pytest.mark.parametrize('name, write', [
    ('binary', lambda path: path.write_bytes(bytes(range(256)))),
    ('too long for a path', lambda path: path.write_text('x' * 5000)),
    ('too long for a name', lambda path: path.write_text('/tmp/' + 'x' * 300)),
    ('a folder', lambda path: path.mkdir()),
    ('a link to itself', lambda path: path.symlink_to(path)),
    ('empty', lambda path: path.touch()),
    ('two lines', lambda path: path.write_text('a.pth\nb.pth')),
])
def test_a_last_checkpoint_that_names_nothing(name: str, write: Callable[[Path], object],
                                              tmp_path: Path, caplog) -> None:
    """The newest checkpoint is taken, and a line says why."""
    for step in (2, 4):
        torch.save({'meta': dict(iter=step), 'state_dict': {}}, tmp_path / f'iter_{step}.pth')
        os.utime(tmp_path / f'iter_{step}.pth', (1e9 + step, 1e9 + step))
    write(tmp_path / 'last_checkpoint')
    path, meta = find_resumable(tmp_path)
    assert path.name == 'iter_4.pth' and meta['iter'] == 4
    (line,) = caplog.messages
    assert 'last_checkpoint' in line and len(line) < 500


def test_pretrained_weights_and_resume(reference: Path, tmp_path: Path) -> None:
    """Reading pretrained weights first must not get into the way of reading the checkpoint."""
    state = weights(reference / 'work' / 'iter_8.pth')
    torch.save({name.removeprefix('backbone.'): value for name, value in state.items()
                if name.startswith('backbone.')}, tmp_path / 'pretrained.pth')
    config = write_run(tmp_path, f"""
model['backbone']['init_cfg'] = dict(type='Pretrained',
                                     checkpoint={str(tmp_path / 'pretrained.pth')!r})
train_cfg['max_iters'] = 4
""")
    work, again = tmp_path / 'work', tmp_path / 'again'
    assert run('train', tmp_path, config, '--no-validate').code == 0
    assert logged_losses(work)[1] != logged_losses(reference / 'work')[1]
    done = run('train', tmp_path, config, '--no-validate', '--work-dir', again, '--resume',
               work / 'iter_2.pth')
    assert done.code == 0, done.output
    assert_same_run(again, work, 'iter_4.pth', after=2)


def test_one_cycle_goes_on(tmp_path: Path) -> None:
    """This scheduler leaves the name of a method of its own in the checkpoint."""
    config = write_run(tmp_path, """
param_scheduler = [dict(type='OneCycleLR', eta_max=0.01, total_steps=8, by_epoch=False)]
train_cfg['max_iters'] = 4
""")
    work, again = tmp_path / 'work', tmp_path / 'again'
    assert run('train', tmp_path, config, '--no-validate').code == 0
    done = run('train', tmp_path, config, '--no-validate', '--work-dir', again, '--resume',
               work / 'iter_2.pth')
    assert done.code == 0, done.output
    assert_same_run(again, work, 'iter_4.pth', after=2)


@pytest.mark.parametrize('sampler', [InfiniteSampler, DefaultSampler])
@pytest.mark.parametrize('workers, at_once', [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize('images', [7, 5])
def test_stream_is_entered_anywhere(sampler: type, workers: int, at_once: bool, images: int,
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """The iteration loop's batches after a resume, also where the sampler ends after each pass.

    onedl-mmengine's loop drops the past batches `at_once`.
    """
    monkeypatch.setattr('mmengine.runner.loops.time.sleep', lambda _: None)

    def loop(done: int) -> SimpleNamespace:
        cfg = numbered(dict(dataset=Noise(images), batch_size=2, num_workers=workers,
                            drop_last=False,
                            sampler=dict(type=sampler, shuffle=True)))
        loader = DenseRunner.build_dataloader(cfg, seed=3)
        out = SimpleNamespace(dataloader=loader, iter=done, epoch=0,
                              dataloader_iterator=_InfiniteDataloaderIterator(loader))
        if done:
            enter_at(out)
        if done and at_once:
            out.dataloader_iterator.skip_iter(done)
        else:
            for _ in range(done):
                next(out.dataloader_iterator)
        return out

    whole = loop(0).dataloader_iterator
    expected = [next(whole) for _ in range(13)]
    # Four or three batches are a pass; four are on their way when two workers have been started.
    for done in (1, 3, 4, 6, 8, 11):
        resumed = loop(done).dataloader_iterator
        assert [next(resumed) for _ in range(done, 13)] == expected[done:]


def test_drop_last_reaches_a_batch_sampler_of_the_config() -> None:
    class Batches(BatchSampler):
        """With drop_last as AspectRatioBatchSampler has it."""

        def __init__(self, sampler: object, batch_size: int, drop_last: bool = False) -> None:
            super().__init__(sampler, batch_size, drop_last)

    cfg = numbered(dict(dataset=Noise(7), batch_size=2, num_workers=0, drop_last=True,
                        batch_sampler=dict(type=Batches), sampler=dict(type=DefaultSampler)))
    loader = DenseRunner.build_dataloader(cfg, seed=3)
    assert len(loader) == len(list(loader)) == 3


class Noise(torch.utils.data.Dataset):
    """Index and three random numbers, one of each generator."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> list[float]:
        assert type(index) is int
        return [index, random.random(), np.random.rand(), torch.rand(()).item()]


def test_loading_does_not_move_the_models_generators() -> None:
    cfg = numbered(dict(dataset=Noise(4), batch_size=2, num_workers=0,
                        sampler=dict(type=DefaultSampler)))
    batches = iter(DenseRunner.build_dataloader(cfg, seed=3))
    before = random.getstate(), torch.get_rng_state()
    next(batches)
    assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1])


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / 'x.pth'
    write_text_whole(path, 'old')
    with pytest.raises(RuntimeError), written_whole(path) as temporary:
        temporary.write_text('half of the ne')
        assert path.read_text() == 'old'
        raise RuntimeError
    assert path.read_text() == 'old' and os.listdir(tmp_path) == ['x.pth']


def test_a_write_that_ends_replaces_the_file(tmp_path: Path) -> None:
    path = tmp_path / 'x.pth'
    write_text_whole(path, 'old')
    write_text_whole(path, 'new')
    assert path.read_text() == 'new' and os.listdir(tmp_path) == ['x.pth']


def test_a_checkpoint_of_the_best_score_knows_that_it_is(tmp_path: Path) -> None:
    """So an early stop does not compare with an older score after a resume."""
    config = write_run(tmp_path, """
custom_imports['imports'].append('visattn_dense.openmmlab.engine')
custom_hooks = [dict(type='EarlyStopHook', monitor='mIoU')]
default_hooks['checkpoint']['save_best'] = 'mIoU'
train_cfg.update(max_iters=2, val_interval=2)
""")
    done = run('train', tmp_path, config)
    assert done.code == 0, done.output
    info = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)[
        'message_hub']['runtime_info']
    assert info['early_stop'] == [0, pytest.approx(info['best_score'])]


def test_unseeded_run_keeps_its_seed(reference: Path, tmp_path: Path) -> None:
    config = write_run(tmp_path, 'randomness = dict(seed=None)\ntrain_cfg["max_iters"] = 4\n')
    assert run('train', tmp_path, config, '--no-validate').code == 0
    again = tmp_path / 'again'
    again.mkdir()
    done = run('train', tmp_path, config, '--no-validate', '--work-dir', again,
               '--resume', tmp_path / 'work' / 'iter_2.pth')
    assert done.code == 0, done.output
    assert_same_run(again, tmp_path / 'work', 'iter_4.pth', after=2)


@pytest.fixture(scope='module')
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a detector's run of three epochs that nothing interrupted.

    Its batch sampler groups images by shape.
    """
    folder = tmp_path_factory.mktemp('detector')
    done = run('train', folder, write_detection_run(folder))
    assert done.code == 0, done.output
    return folder


def test_epochs_of_mmdet(detector: Path, tmp_path: Path) -> None:
    (tmp_path / 'work').mkdir()
    done = run('train', tmp_path, detector / 'tiny_det.py',
               '--resume', detector / 'work' / 'epoch_1.pth')
    assert done.code == 0, done.output
    assert_same_run(tmp_path / 'work', detector / 'work', 'epoch_3.pth', after=3)


def test_the_middle_of_an_epoch_of_mmdet(detector: Path, tmp_path: Path) -> None:
    by_iteration = ['--cfg-options', 'default_hooks.checkpoint.by_epoch=False',
                    'default_hooks.checkpoint.interval=5']
    config, work = detector / 'tiny_det.py', tmp_path / 'work'
    assert run('train', tmp_path, config, *by_iteration).code == 0
    for path in work.glob('iter_9.pth'):
        path.unlink()
    (work / 'last_checkpoint').unlink()
    for log in work.glob('*/vis_data/*.json'):
        log.unlink()
    done = run('train', tmp_path, config, *by_iteration, '--resume')
    assert done.code == 0, done.output
    assert f'Resuming from {work / "iter_5.pth"}' in done.output
    steps = logged_losses(work)
    assert sorted(steps) == [6, 7, 8, 9]
    expected = logged_losses(detector / 'work')
    assert steps == {step: expected[step] for step in steps}


def test_the_end_of_an_epoch_that_was_saved_as_an_iteration(detector: Path, tmp_path: Path) -> None:
    by_iteration = ['--no-validate', '--cfg-options', 'default_hooks.checkpoint.by_epoch=False',
                    'default_hooks.checkpoint.interval=3']
    config, work = detector / 'tiny_det.py', tmp_path / 'work'
    assert run('train', tmp_path, config, *by_iteration).code == 0
    for done, after in ((3, [4, 5, 6, 7, 8, 9]), (9, [])):
        again = tmp_path / f'after {done}'
        resumed = run('train', tmp_path, config, '--work-dir', again, '--resume',
                      work / f'iter_{done}.pth', *by_iteration)
        assert resumed.code == 0, resumed.output
        expected = logged_losses(work)
        assert logged_losses(again) == {step: expected[step] for step in after}


def test_an_epoch_of_another_length_is_whole(detector: Path, tmp_path: Path) -> None:
    """Three batches are an epoch, and two with the other batch size."""
    done = run('train', tmp_path, detector / 'tiny_det.py', '--no-validate', '--resume',
               detector / 'work' / 'epoch_1.pth', '--cfg-options', 'train_dataloader.batch_size=3')
    assert done.code == 0, done.output
    assert sorted(logged_losses(tmp_path / 'work')) == [4, 5, 6, 7]
