"""What the demos share: their command line, their folder, and their three steps."""
from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mmengine.config import Config

from demo.scenes import write_dataset
from visattn_dense.command import add_debug, run
from visattn_dense.errors import UserError
from visattn_dense.visualization.progress import ProgressLine, minutes

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = Path(__file__).with_name('configs')
MARK = 'demo.json'
"""The file that makes a run's folder one of the demo: the next demo may replace that folder."""


class Scores(Protocol):
    """What the trained model does on the validation scenes: for the screen, and for `MARK`."""

    def table(self) -> str: ...

    def record(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Demo:
    """What differs between the demos.

    Attributes:
        description: for --help.
        work_dir, iters, train_scenes: defaults of the options.
        config: of the training.
        layout: 'ade' or 'coco', the part of the rendered data that it reads.
        evaluate: from the run's config and checkpoint.
        next_step: what to do with the model; {config}, {checkpoint} and {data} are filled in.
    """

    description: str
    work_dir: str
    iters: int
    train_scenes: int
    config: Path
    layout: str
    evaluate: Callable[[Config, Path], Scores]
    next_step: str


def parse_args(demos: Mapping[str, Demo], arguments: Sequence[str] | None = None
               ) -> argparse.Namespace:
    """The options, each with the chosen demo's default, and the demo as `demo`."""
    parser = argparse.ArgumentParser(
        prog='python -m demo', description='The whole way in minutes, without a download.')
    commands = parser.add_subparsers(required=True, metavar=' | '.join(demos))
    for name, demo in demos.items():
        command = commands.add_parser(name, description=demo.description, help=demo.description)
        command.set_defaults(demo=demo)
        command.add_argument('--work-dir', type=Path, default=Path(demo.work_dir),
                             help='where everything goes (default: %(default)s)')
        command.add_argument('--iters', type=int, default=demo.iters,
                             help='iterations of the training (default: %(default)s)')
        command.add_argument('--seed', type=int, default=0, help='of scenes and training')
        command.add_argument('--train-scenes', type=int, default=demo.train_scenes, metavar='N',
                             help='scenes to train on (default: %(default)s)')
        command.add_argument('--val-scenes', type=int, default=32, metavar='N',
                             help='scenes to evaluate on (default: %(default)s)')
    add_debug(parser)
    return parser.parse_args(arguments)


def run_demo(args: argparse.Namespace) -> None:
    """Render, train, evaluate; each step says what it does and where it puts it.

    Raises:
        UserError: bad numbers, or a work directory that cannot be used.
        KeyboardInterrupt, SystemExit: see `train`.
    """
    if args.iters < 4:
        raise UserError(f'--iters is at least 4, got {args.iters}')
    demo: Demo = args.demo
    begun = time.monotonic()
    data, run = args.work_dir / 'data', prepare(args.work_dir)
    print(f'1/3  scenes: {args.train_scenes} to train on, {args.val_scenes} to evaluate on')
    rendered = write_dataset(data, args.train_scenes, args.val_scenes, seed=args.seed,
                             progress=sys.stderr.isatty())
    print(f'  {"rendered" if rendered else "there already"}: {data}')
    data /= demo.layout
    print(f'2/3  training, {args.iters} iterations; its output is in {run / "train.log"}')
    train(demo.config, run, data, args.iters, arguments=['--seed', str(args.seed)],
          options=schedule_options(args.iters))
    print('3/3  evaluation')
    checkpoint = run / f'iter_{args.iters}.pth'
    found = demo.evaluate(Config.fromfile(run / demo.config.name), checkpoint)
    print(found.table())
    took = time.monotonic() - begun
    (run / MARK).write_text(json.dumps(dict(
        iters=args.iters, seed=args.seed, seconds=round(took)) | found.record(), indent=1) + '\n')
    print('Pictures of the training:')
    for name, what in ((f'val_{args.iters}.jpg', 'validation scenes: image | truth | prediction'),
                       ('curve.png', 'losses, scores, learning rate'),
                       ('labels.png', 'what the labels hold'),
                       ('train_batch.jpg', 'training images as the network sees them')):
        if (run / name).is_file():
            print(f'  {run / name}  {what}')
    print(f'Done in {minutes(took)}. ' + demo.next_step.format(
        config=os.path.relpath(demo.config), checkpoint=checkpoint, data=data))


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
    """--cfg-options that fit the demos' schedule to `iters` iterations.

    The schedule has a warm-up, a decay and four validations.
    """
    warmup, quarter = max(1, iters // 20), max(1, iters // 4)
    return {'train_cfg.max_iters': iters, 'param_scheduler.0.end': warmup,
            'param_scheduler.1.begin': warmup, 'param_scheduler.1.end': iters,
            'default_hooks.logger.interval': max(1, iters // 120),
            'train_cfg.val_interval': quarter, 'default_hooks.checkpoint.interval': quarter}


def train(config: Path, run: Path, data: Path, iters: int, *, arguments: Sequence[str],
          options: Mapping[str, Any]) -> None:
    """Train with the same launcher as everything else, showing one line of progress.

    Args:
        config: of the training.
        run: its work directory.
        data: what SCENES_ROOT names.
        iters: all iterations, for the progress.
        arguments: further arguments of tools/train.py.
        options: --cfg-options.

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


def exit_code(command: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Run a command; returns its exit code, with one message for bad input."""
    # As Ctrl-C does: the training must not go on alone.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    return run(command, args)
