"""What the demos share: their command line, their folder, and training with a line of progress."""
from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from visattn_dense.errors import UserError
from visattn_dense.visualization.progress import ProgressLine

ROOT = Path(__file__).resolve().parents[1]
MARK = 'demo.json'
"""The file that makes a run's folder one of the demo: it may be replaced by the next."""


def demo_parser(prog: str, description: str, *, work_dir: str, iters: int,
                train_scenes: int) -> argparse.ArgumentParser:
    """The command line of a demo with its defaults."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument('--work-dir', type=Path, default=Path(work_dir),
                        help='where everything goes (default: %(default)s)')
    parser.add_argument('--iters', type=int, default=iters,
                        help='iterations of the training (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, help='of scenes and training')
    parser.add_argument('--train-scenes', type=int, default=train_scenes, metavar='N',
                        help='scenes to train on (default: %(default)s)')
    parser.add_argument('--val-scenes', type=int, default=32, metavar='N',
                        help='scenes to evaluate on (default: %(default)s)')
    return parser


def prepare(work_dir: Path) -> Path:
    """A new folder for the run; that of an earlier demo is put aside, not mixed with it.

    Raises:
        UserError: the work directory cannot be written, or has a `run` that is not the demo's.
    """
    run, earlier = work_dir / 'run', work_dir / 'run.earlier'
    for folder in (run, earlier):
        if folder.exists() and not (folder / MARK).is_file():
            raise UserError(f'{folder} is there and is not of this demo; choose another folder '
                            'with --work-dir')
    try:
        if run.exists():
            shutil.rmtree(earlier, ignore_errors=True)
            run.rename(earlier)
        run.mkdir(parents=True)
        (run / MARK).write_text('{}\n')
    except OSError as error:
        raise UserError(f'cannot write to {work_dir}: {error.strerror}; choose another folder '
                        'with --work-dir') from error
    return run


def schedule_options(iters: int) -> dict[str, Any]:
    """--cfg-options that fit the demos' schedule, a warm-up and a decay, to `iters` iterations."""
    warmup = max(1, iters // 20)
    return {'train_cfg.max_iters': iters, 'param_scheduler.0.end': warmup,
            'param_scheduler.1.begin': warmup, 'param_scheduler.1.end': iters,
            'default_hooks.logger.interval': max(1, iters // 120)}


def train(config: Path, run: Path, data: Path, iters: int, *, options: Mapping[str, Any],
          arguments: Sequence[str] = ()) -> None:
    """Train with the same launcher as everything else, showing one line of progress.

    Args:
        config: of the training.
        run: its work directory.
        data: what SCENES_ROOT names.
        iters: all iterations, for the progress.
        options: --cfg-options.
        arguments: further arguments of tools/train.py.

    Raises:
        KeyboardInterrupt: after the training was stopped.
        SystemExit: the training failed; its last words are on stderr.
    """
    command = [sys.executable, str(ROOT / 'tools/train.py'), str(config), '--work-dir', str(run),
               *arguments, '--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    # On a busy machine threads that wait by spinning cost more than they bring.
    environment = {'OMP_WAIT_POLICY': 'PASSIVE', **os.environ, 'SCENES_ROOT': str(data.resolve())}
    log = run / 'train.log'
    with log.open('w') as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT,
                                   env=environment)
        line = ProgressLine(run, iters)
        try:
            while process.poll() is None:
                line.update()
                time.sleep(0.5)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            line.close(finished=process.returncode == 0)
    if process.returncode:
        tail = '\n'.join(log.read_text().splitlines()[-12:])
        print(f'{tail}\nerror: the training failed; all of its output is in {log}',
              file=sys.stderr)
        raise SystemExit(process.returncode)


def run_tool(demo: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a demo; returns its exit code, with one message for bad input."""
    try:
        # As Ctrl-C does: the training must not go on alone.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        demo(args)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('\nStopped.', file=sys.stderr)
        return 130
    return 0
