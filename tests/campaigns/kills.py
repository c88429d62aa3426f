"""Kill training at random moments, resume it, compare the end with a run that was never killed.

    python -m tests.campaigns.kills [--kills 50] [--minutes 60] [--seed 0] [--json FILE]

Each trial is a training run in a process and a work directory of its own. SIGKILL ends the process
at a moment drawn evenly from the time that the uninterrupted run took, imports excluded. The run
is then started again with `--resume`. Equal means, to the bit: the loss of every iteration that
the trial logged, and weights, optimizer state and schedulers of the last checkpoint.

A trial counts when SIGKILL ended the process. When the run was faster, the trial begins again with
another moment.

Exit codes: 0 every trial ended equal; 1 one did not, or there was none.
"""
import argparse
import collections
import json
import random
import re
import shutil
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from tests.tiny_runs import Child, logged_losses, run, write_run

# The ballast makes a save take long enough for some kills to fall into it.
SLOW_SAVE = '''
custom_imports = dict(imports=['visattn_dense', 'tests.tiny_modules'])
custom_hooks = [dict(type='BallastHook')]
'''
LAST = 8
"""Iterations of tests/tiny_runs.py's run; it saves after every second one."""


@dataclass
class Trial:
    """One kill and what became of the run.

    Attributes:
        at: seconds from the start of the process to the kill.
        phase: what the run was doing: 'start' (no iteration logged yet), 'training', 'saving' (an
            unfinished checkpoint was left) or 'end' (the last iteration was logged).
        logged: iterations in the log at that moment.
        resumed: the checkpoint that the run went on from; '' for none.
        fault: what differs in the end; '' for nothing.
    """

    at: float
    phase: str
    logged: int
    resumed: str = ''
    fault: str = ''


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--kills', type=int, default=50, help='how many (default 50)')
    parser.add_argument('--seed', type=int, default=0, help='of the moments (default 0)')
    parser.add_argument('--minutes', type=float, default=60.,
                        help='begin no trial after that time (default 60)')
    parser.add_argument('--json', type=Path, help='also write the trials to this file')
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        trials = campaign(Path(folder), args.kills, args.minutes, random.Random(args.seed))
    if args.json:
        args.json.write_text(json.dumps([asdict(trial) for trial in trials], indent=1))
    return report(trials)


def campaign(folder: Path, kills: int, minutes: float, rng: random.Random) -> list[Trial]:
    """Run the reference, then as many trials as `kills`; print a line for each."""
    end = time.monotonic() + 60 * minutes
    config = write_run(folder, SLOW_SAVE)
    # The first run warms the fork server up; the second is timed.
    for name in ('warm', 'reference'):
        begun = time.monotonic()
        done = run('train', folder, config, '--work-dir', folder / name)
        seconds = time.monotonic() - begun
        assert done.code == 0, done.output
    shutil.rmtree(folder / 'warm')
    print(f'the uninterrupted run took {seconds:.1f} s', flush=True)
    print('kill  at s   during    logged  resumed from  end')
    trials = []
    while len(trials) < kills and time.monotonic() < end:
        if trial := one_trial(folder, config, rng.uniform(0, seconds)):
            trials.append(trial)
            print(f'{len(trials):4d} {trial.at:6.2f}   {trial.phase:9s} {trial.logged:5d}  '
                  f'{trial.resumed or "the beginning":13s} {trial.fault or "equal"}', flush=True)
    return trials


def one_trial(folder: Path, config: Path, moment: float) -> Trial | None:
    """Kill a run after `moment` seconds and resume it; None where the run ended before."""
    work, reference = folder / 'trial', folder / 'reference'
    shutil.rmtree(work, ignore_errors=True)
    begun = time.monotonic()
    child = Child('train', folder, config, '--work-dir', work)
    time.sleep(max(0., begun + moment - time.monotonic()))
    at = time.monotonic() - begun
    # The kill may come before the process opened its log; `Child.wait` would read the log.
    child.process.kill()
    child.process.join()
    if child.process.exitcode != -9:
        return None
    logged = len(logged_losses(work))
    trial = Trial(at, phase_of(work, logged), logged)
    done = run('train', folder, config, '--work-dir', work, '--resume')
    if found := re.search(r'Resuming from \S*?(iter_\d+\.pth)', done.output):
        trial.resumed = found[1]
    trial.fault = (f'exit code {done.code}: {done.output.strip().splitlines()[-1:]}' if done.code
                   else difference(work, reference))
    return trial


def phase_of(work: Path, logged: int) -> str:
    if any(work.glob('.*.tmp')):
        return 'saving'
    return 'start' if not logged else 'end' if logged == LAST else 'training'


def difference(work: Path, reference: Path) -> str:
    """What distinguishes a finished trial from the reference; '' for nothing."""
    ours, theirs = logged_losses(work), logged_losses(reference)
    if not ours.items() <= theirs.items():
        return 'other losses'
    if not (work / f'iter_{LAST}.pth').exists():
        return 'did not reach the end'
    if left := [path.name for path in work.glob('.*.tmp')]:
        return f'left {left[0]}'
    ours, theirs = (torch.load(folder / f'iter_{LAST}.pth', map_location='cpu',
                               weights_only=False) for folder in (work, reference))
    for part in ('state_dict', 'optimizer', 'param_schedulers'):
        if not same(ours[part], theirs[part]):
            return f'other {part}'
    return ''


def same(ours: object, theirs: object) -> bool:
    """Whether two nests of containers, tensors and values are equal, tensors to the bit."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, torch.Tensor):
        return (ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(
            ours.contiguous().view(-1).view(torch.uint8),
            theirs.contiguous().view(-1).view(torch.uint8)))
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(ours[key], theirs[key]) for key in ours)
    if isinstance(ours, (list, tuple)):
        return len(ours) == len(theirs) and all(map(same, ours, theirs))
    return ours == theirs


def report(trials: list[Trial]) -> int:
    """Print how many kills fell into which phase and ended equal; the exit code."""
    print('\nduring     kills  equal')
    kills = collections.Counter(trial.phase for trial in trials)
    equal = collections.Counter(trial.phase for trial in trials if not trial.fault)
    for phase in ('start', 'training', 'saving', 'end'):
        print(f'{phase:9s} {kills[phase]:6d} {equal[phase]:6d}')
    print(f'{"all":9s} {kills.total():6d} {equal.total():6d}')
    return 0 if trials and kills == equal else 1


if __name__ == '__main__':
    sys.exit(main())
