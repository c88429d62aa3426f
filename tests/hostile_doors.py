"""Every way into the project that takes a checkpoint, each tried in a process of its own.

    python -m tests.hostile_doors            # the whole table, several minutes
    python -m tests.hostile_doors resume     # one door

A process that has imported everything forks for each pair of a door and a file. The child is
limited in time, and watched: what it said, whether a signal ended it, how much memory it took.
"""
import argparse
import contextlib
import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.hostile_files import cases
from tests.tiny_runs import write_run

ARCH = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8), stripe_widths=(1, 2, 7, 7))
# A child that computes longer hangs. Processor time: a loaded machine is no hang.
SECONDS = 30
MEMORY = 200 << 20
TOOLS = Path(__file__).resolve().parents[1] / 'tools'
# An entry of /proc/self/smaps: a line with addresses and path, then one line for each number.
LIBRARY = re.compile(rb'/[^/\n]*\.so[^/\n]*\n(?:[A-Z].*\n)*?Rss: *(\d+)')
KINDS = ('taken', 'refused', 'traceback', 'signal', 'hang')

Door = Callable[['Place', Path], object]


@dataclass
class Place:
    """Where the doors work: a tiny run of mmseg, its model's state, and a folder to be left alone.

    Attributes:
        folder: everything lies here.
        config: of the run.
        state: what the run's model holds.
        guarded: holds two files; nothing may come in or go.
    """

    folder: Path
    config: Path
    state: dict[str, torch.Tensor]
    guarded: Path

    @classmethod
    def make(cls, folder: Path) -> 'Place':
        config = write_run(folder, HOOKS, images=2)
        place = cls(folder, config, cls.model(config).state_dict(), folder / 'guarded')
        place.guarded.mkdir()
        for name in GUARDED:
            (place.guarded / name).write_text('precious')
        return place

    @staticmethod
    def model(config: Path) -> torch.nn.Module:
        from mmengine.config import Config
        from mmengine.registry import DefaultScope
        from mmseg.registry import MODELS

        from visattn_dense.openmmlab.engine.launch import register_scope
        register_scope('mmseg')
        with DefaultScope.overwrite_default_scope('mmseg'):
            return MODELS.build(Config.fromfile(config).model)


GUARDED = ('precious', 'best_mIoU_iter_2.pth')
HOOKS = """
default_hooks['checkpoint'].update(save_best='mIoU', max_keep_ckpts=1, interval=1)
train_cfg.update(max_iters=3, val_interval=3)
"""


def _backbone(place: Place, path: Path) -> None:
    from visattn_dense.backbones import CSWin
    CSWin(ARCH, init_cfg=dict(type='Pretrained', checkpoint=str(path))).init_weights()


def _whole(place: Place, path: Path) -> None:
    from visattn_dense.zoo import load_segmentor
    load_segmentor(place.model(place.config), path)


def _stranger(place: Place, path: Path) -> None:
    from mmengine.runner import load_checkpoint
    load_checkpoint(place.model(place.config), str(path))


def _hub(place: Place, path: Path) -> None:
    from visattn_dense.interop.hub import HubBackbone
    folder = Path(tempfile.mkdtemp(dir=place.folder))
    (folder / 'config.json').write_text(
        '{"family": "CSWin", "arch": {"embed_dim": 16, "depths": [1, 1, 1, 1], '
        '"num_heads": [2, 4, 4, 8], "stripe_widths": [1, 2, 7, 7]}}')
    shutil.copy(path, folder / 'model.safetensors')
    HubBackbone.from_pretrained(folder)


def _inspect(place: Place, path: Path) -> int:
    from visattn_dense.zoo.__main__ import main
    return main(['inspect', str(path)])


def _convert(place: Place, path: Path) -> int:
    from visattn_dense.zoo.__main__ import main
    return main(['convert', str(path), str(path.with_name('converted.pth')), '--overwrite'])


def _infer(place: Place, path: Path) -> int:
    from infer import main
    image = place.folder / 'data' / 'images' / '0.png'
    return main([str(place.config), str(path), str(image), '--out-dir', str(place.folder / 'out'),
                 '--device', 'cpu'])


def _test(place: Place, path: Path) -> int:
    from visattn_dense.openmmlab.engine.launch import test
    return test([str(place.config), str(path), '--work-dir', str(place.folder / 'tested')])


def _train(place: Place, *options: str) -> int:
    from visattn_dense.openmmlab.engine.launch import train
    work = tempfile.mkdtemp(dir=place.folder)
    return train([str(place.config), '--work-dir', work, *options])


def _load_from(place: Place, path: Path) -> int:
    return _train(place, '--no-validate', '--cfg-options', 'train_cfg.max_iters=1',
                  f'load_from={path}')


def _resume(place: Place, path: Path) -> int:
    return _train(place, '--resume', str(path))


DOORS: dict[str, Door] = {
    'init_cfg': _backbone, 'load_segmentor': _whole, 'mmengine': _stranger, 'hub': _hub,
    'inspect': _inspect, 'convert': _convert, 'infer': _infer, 'test': _test,
    'load_from': _load_from, 'resume': _resume}
CHEAP = ('init_cfg', 'load_segmentor', 'inspect')
"""Those that take a fraction of a second for each file."""


@dataclass(frozen=True)
class Outcome:
    """What came of a file at a door.

    Attributes:
        kind: 'taken', 'refused' (one message of the project), 'traceback', 'signal', 'hang'.
        said: the message, or what else is to be known.
        memory: bytes that the child took beyond what it began with, shared libraries left out.
    """

    kind: str
    said: str
    memory: int


def prepare(place: Place) -> None:
    """Make once what a process makes at its first file, whatever the file: the modules of the
    doors, and the empty variants that `inspect` and `convert` compare a file with."""
    from visattn_dense.zoo.recognise import summarise
    summarise(place.state)
    sys.path.insert(0, str(TOOLS))
    for name in ('distutils.core', 'infer', 'visattn_dense.interop.hub',
                 'visattn_dense.zoo.__main__', 'tests.frozen'):
        importlib.import_module(name)


def _high_water() -> int:
    with open('/proc/self/status') as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith('VmHWM'))


def _libraries() -> int:
    """Bytes of shared libraries that this process has touched. How many pages one touch brings
    depends on the file system's cache, so for the same work the number differs from day to day."""
    return 1024 * sum(map(int, LIBRARY.findall(Path('/proc/self/smaps').read_bytes())))


def attempt(door: Door, place: Place, path: Path) -> Outcome:
    """Try one file at one door, in a forked process."""
    from visattn_dense.errors import UserError
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        with contextlib.suppress(BaseException):
            os.close(read)
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            os.chdir(place.folder)
            log = os.open(place.folder / 'log', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(log, 1)
            os.dup2(log, 2)
            # The mark begins anew, at what the process has now.
            Path('/proc/self/clear_refs').write_text('5')
            before = _high_water() - _libraries()
            try:
                status = door(place, path)
                kind, said = ('taken', '') if not status else (
                    'refused' if status == 2 else 'traceback', f'exit code {status}')
            except UserError as error:
                kind, said = 'refused', str(error)
            except BaseException as error:
                kind, said = 'traceback', f'{type(error).__name__}: {error}'
            taken = _high_water() - _libraries() - before
            os.write(write, f'{taken}\n{kind}\n{said}'.encode(
                errors='replace')[:4000])
        os._exit(code)
    os.close(write)
    with os.fdopen(read, 'rb') as pipe:
        # A child that waits for ever takes no processor time.
        if not select.select([pipe], [], [], 20 * SECONDS)[0]:
            os.kill(child, signal.SIGKILL)
        answer = pipe.read().decode(errors='replace')
    status = os.waitpid(child, 0)[1]
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        hang = number in (signal.SIGXCPU, signal.SIGKILL)
        return Outcome('hang' if hang else 'signal', signal.Signals(number).name, 0)
    memory, kind, said = answer.split('\n', 2)
    log = (place.folder / 'log').read_text(errors='replace')
    if kind == 'traceback' or 'Traceback (most recent call last)' in log:
        return Outcome('traceback', f'{said}\n{log[-3000:]}', int(memory))
    if said.startswith('exit code'):
        said = log[log.rfind('error'):] if 'error' in log else log[-300:]
    return Outcome(kind, said, int(memory))


def write_files(place: Place) -> dict[str, Path]:
    """The hostile files."""
    folder = place.folder / 'files'
    folder.mkdir()
    made = {}
    for number, (name, write) in enumerate(cases().items()):
        made[name] = folder / f'{number}.pth'
        write(made[name], place.state, place.guarded)
    return made


def faults(place: Place, path: Path, outcome: Outcome) -> list[str]:
    """What went wrong at a door, beyond taking or refusing the file."""
    found = [] if outcome.kind in ('taken', 'refused') else [f'{outcome.kind}: {outcome.said}']
    if outcome.memory > MEMORY + 2 * path.stat().st_size:
        found.append(f'took {outcome.memory >> 20} MB for a file of {path.stat().st_size >> 10} kB')
    there = sorted(p.name for p in place.guarded.iterdir()) if place.guarded.is_dir() else []
    if there != sorted(GUARDED):
        found.append(f'the guarded folder holds {there}')
    if outcome.kind == 'refused' and len(outcome.said.strip().splitlines()) > 6:
        found.append(f'said more than a message: {outcome.said}')
    return found


Findings = dict[str, tuple[str, str, int, list[str]]]
"""name of a file -> kind, what was said, bytes, faults"""


def try_door(name: str, place: Place, files: dict[str, Path]) -> Findings:
    found = {}
    for kind, path in files.items():
        outcome = attempt(DOORS[name], place, path)
        found[kind] = (outcome.kind, outcome.said, outcome.memory, faults(place, path, outcome))
    return found


def print_table(names: Iterable[str], place: Place, files: dict[str, Path]) -> int:
    """The number of faults."""
    bad = 0
    for name in names:
        begun = time.monotonic()
        found = try_door(name, place, files)
        count = Counter(kind for kind, _, _, _ in found.values())
        print(f'{name:15} {len(files)} files: '
              + ', '.join(f'{count[kind]} {kind}' for kind in KINDS)
              + f'; at most {max(memory for _, _, memory, _ in found.values()) >> 20} MB; '
              f'{time.monotonic() - begun:.0f} s', flush=True)
        for kind, (_, _, _, wrong) in found.items():
            for fault in wrong:
                print(f'    {kind}: {fault}', flush=True)
            bad += len(wrong)
    print(f'{bad} faults')
    return bad


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='python -m tests.hostile_doors')
    parser.add_argument('doors', nargs='*', metavar='DOOR', help=f'of {", ".join(DOORS)}; all')
    parser.add_argument('--serve', action='store_true', help='read lines of JSON from the standard '
                        'input, [door, names of files], and answer each with one')
    args = parser.parse_args(arguments)
    # A fork does not take the threads along that OpenMP waits for.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        place = Place.make(Path(folder))
        files = write_files(place)
        prepare(place)
        if not args.serve:
            return bool(print_table(args.doors or DOORS, place, files))
        for line in sys.stdin:
            door, names = json.loads(line)
            found = try_door(door, place, {name: files[name] for name in names})
            print(json.dumps(found), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
