"""Two processes on the CPU, through the scripts that a lab with eight GPUs types."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny_runs import (
    ROOT,
    Child,
    Done,
    environment,
    free_port,
    logged_losses,
    run,
    run_tool,
    write_run,
)

# The head reads the last map only: the norms of the other three get no gradient.
UNUSED = "model['decode_head'].update(input_transform=None, in_index=3, in_channels=128)\n"


def as_ranks(folder: Path, *arguments: object, slurm: bool = False) -> list[Done]:
    """tools/train.py as two ranks of one run, started without torchrun's seconds."""
    names = ('SLURM_PROCID', 'SLURM_LOCALID', 'SLURM_NTASKS') if slurm else (
        'RANK', 'LOCAL_RANK', 'WORLD_SIZE')
    port = str(free_port())
    ranks = [Child('train', folder, *arguments, '--launcher', 'slurm' if slurm else 'pytorch',
                   MASTER_ADDR='127.0.0.1', MASTER_PORT=port,
                   **dict(zip(names, (str(rank), str(rank), '2'), strict=True)))
             for rank in range(2)]
    return [rank.wait() for rank in ranks]


def metrics(work: Path) -> dict[str, float]:
    result = json.loads(next(work.glob('*/*.json')).read_text())
    return {name: result[name] for name in ('aAcc', 'mIoU', 'mAcc')}


def test_scripts_train_and_evaluate(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    work = tmp_path / 'a work dir'
    done = run_tool('dist_train.sh', config.name, 2, '--work-dir', work, '--no-validate',
                    '--cfg-options', 'train_cfg.max_iters=4', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert 'No GPU: 2 gloo processes on the CPU' in said
    assert said.count('SyncBN runs as BN') == 1
    assert '2 processes x 2 images' in said and 'is deprecated' not in said
    assert sorted(logged_losses(work)) == [1, 2, 3, 4]

    done = run_tool('dist_test.sh', config.name, work / 'iter_4.pth', 2,
                    '--work-dir', tmp_path / 'two', cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert run('test', tmp_path, config, work / 'iter_4.pth', '--work-dir', tmp_path / 'one',
               ).code == 0
    assert metrics(tmp_path / 'two') == metrics(tmp_path / 'one')


def test_only_one_rank_speaks_of_a_wrong_config(tmp_path: Path) -> None:
    done = run_tool('dist_train.sh', tmp_path / 'gone.py', 2)
    assert done.returncode == 2
    assert done.stderr.count('no config file') == 1
    assert 'Traceback' not in done.stderr and 'ChildFailedError' not in done.stderr


def test_two_processes_do_not_paint_half_of_the_images(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    assert run('train', tmp_path, config, '--no-validate', '--cfg-options',
               'train_cfg.max_iters=2').code == 0
    done = run_tool('dist_test.sh', config, tmp_path / 'work' / 'iter_2.pth', 2, '--show-dir',
                    tmp_path / 'painted', '--work-dir', tmp_path / 'work')
    assert done.returncode == 2
    assert done.stderr.count('start tools/test.py as one process') == 1
    assert not (tmp_path / 'painted').exists()


def test_resume_is_exact(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    short = ['--no-validate', '--cfg-options', 'train_cfg.max_iters=6']
    whole, again = tmp_path / 'whole', tmp_path / 'again'
    for first in as_ranks(tmp_path, config, '--work-dir', whole, *short):
        assert first.code == 0, first.output
    for second in as_ranks(tmp_path, config, '--work-dir', again, '--resume',
                           whole / 'iter_2.pth', *short, slurm=True):
        assert second.code == 0, second.output
    expected = logged_losses(whole)
    assert logged_losses(again) == {step: expected[step] for step in (3, 4, 5, 6)}


def test_unused_parameters_are_named(tmp_path: Path) -> None:
    config = write_run(tmp_path, UNUSED)
    failed = as_ranks(tmp_path, config)
    assert [done.code for done in failed] == [2, 2]
    assert 'backbone.norm1.weight' in failed[0].output
    assert 'find_unused_parameters=True' in failed[0].output


def test_the_main_process_alone_writes_the_metrics(tmp_path: Path) -> None:
    # Two that write one file at once can damage it. Each rank has a folder here, to see who writes.
    code = """if True:
        import logging, os
        from types import SimpleNamespace
        import torch
        import visattn_dense
        from mmengine.hooks import LoggerHook
        torch.distributed.init_process_group('gloo')
        logged = SimpleNamespace(get_log_after_epoch=lambda *a, **k: ({'mIoU': 17.5}, 'mIoU: 17.5'))
        folder = 'rank ' + os.environ['RANK']
        os.makedirs(folder)
        hook = LoggerHook()
        hook.json_log_path = 'metrics.json'
        hook.after_test_epoch(SimpleNamespace(
            log_processor=logged, test_dataloader=[], log_dir=folder, logger=logging.getLogger()))
        torch.distributed.destroy_process_group()"""
    port = str(free_port())
    ranks = [subprocess.Popen(
        [sys.executable, '-c', code], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=environment(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2',
                        PYTHONPATH=os.fspath(ROOT), MASTER_ADDR='127.0.0.1', MASTER_PORT=port))
        for rank in range(2)]
    for rank in ranks:
        errors = rank.communicate(timeout=300)[1]
        assert rank.returncode == 0, errors
    assert json.loads((tmp_path / 'rank 0' / 'metrics.json').read_text()) == {'mIoU': 17.5}
    assert not (tmp_path / 'rank 1' / 'metrics.json').exists()


@pytest.mark.parametrize('gpus', ['0', 'two', ''])
def test_wrong_number_of_processes(tmp_path: Path, gpus: str) -> None:
    done = run_tool('dist_train.sh', 'config.py', gpus, cwd=tmp_path)
    assert done.returncode == 2 and 'positive number' in done.stderr


@pytest.mark.skipif(not Path('/proc/self/task').exists(), reason='threads are counted in /proc')
def test_no_thread_of_the_process_group_outlives_a_run(tmp_path: Path) -> None:
    # One that lets go of a tensor while Python shuts down aborts the process: exit code 134.
    config = write_run(tmp_path)
    code = ('from pathlib import Path\n'
            'from visattn_dense.openmmlab.engine import distributed, launch\n'
            'def threads(): return sum("gloo" in (task / "comm").read_text()\n'
            '                          for task in Path("/proc/self/task").iterdir())\n'
            'stop, counts = distributed.stop, []\n'
            'def counting(): counts.append(threads()); stop(); counts.append(threads())\n'
            'distributed.stop = counting\n'
            'options = ["--work-dir", "w", "--launcher", "pytorch"]\n'
            'shorter = ["--cfg-options", "train_cfg.max_iters=1"]\n'
            'assert launch.train(["{0}", "--no-validate", *options, *shorter]) == 0\n'
            'assert launch.test(["{0}", "w/iter_1.pth", *options]) == 0\n'
            'print("threads", counts)')
    done = subprocess.run(
        [sys.executable, '-c', code.format(config.name)], capture_output=True, text=True,
        cwd=tmp_path, timeout=300,
        env=environment(RANK='0', LOCAL_RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1',
                        MASTER_PORT=str(free_port()), PYTHONPATH=os.fspath(ROOT)))
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.split('threads ')[-1])
    assert len(counts) == 4 and counts[0] and counts[2] and counts[1] == counts[3] == 0, counts


@pytest.mark.parametrize('averaged', [False, True])
def test_a_validation_scores_what_its_checkpoint_has(tmp_path: Path, averaged: bool) -> None:
    # Statistics of the last batch alone differ from one process to the other.
    config = write_run(tmp_path, "model['decode_head']['norm_cfg'] = dict(type='BN', momentum=1.)\n"
                       + "custom_hooks = [dict(type='EMAHook')]\n" * averaged)
    work = tmp_path / 'work'
    for rank in as_ranks(tmp_path, config, '--cfg-options', 'train_cfg.max_iters=4'):
        assert rank.code == 0, rank.output
    lines = next(work.glob('*/vis_data/scalars.json')).read_text().splitlines()
    scored = [line for line in map(json.loads, lines) if 'mIoU' in line][-1]
    assert run('test', tmp_path, config, work / 'iter_4.pth', '--work-dir', tmp_path / 'one',
               ).code == 0
    found = metrics(tmp_path / 'one')
    assert found == {name: pytest.approx(scored[name]) for name in found}
