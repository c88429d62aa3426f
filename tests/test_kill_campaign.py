"""The campaign of kills finds a run that ended otherwise."""
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.campaigns.kills import Trial, difference, report

LOSSES = {step: 1. / step for step in range(1, 9)}


def write_end(folder: Path, losses: dict[int, float] = LOSSES,
              change: Callable[[dict], object] = lambda checkpoint: None) -> Path:
    """What a finished run leaves: its log and the last checkpoint."""
    weight = torch.tensor([1., -0., 3.])
    optimizer = {'state': {0: {'exp_avg': weight / 3}}, 'param_groups': [{'lr': .1}]}
    checkpoint = dict(state_dict={'w': weight}, optimizer=optimizer,
                      param_schedulers=[{'last_step': 8}])
    change(checkpoint)
    (folder / 'now' / 'vis_data').mkdir(parents=True)
    (folder / 'now' / 'vis_data' / 'now.json').write_text(''.join(
        json.dumps(dict(step=step, loss=loss)) + '\n' for step, loss in losses.items()))
    torch.save(checkpoint, folder / 'iter_8.pth')
    return folder


@pytest.mark.parametrize('change, found', [
    (lambda c: None, ''),
    (lambda c: c['state_dict']['w'].__setitem__(1, 0.), 'other state_dict'),
    (lambda c: c['state_dict'].update(v=torch.ones(1)), 'other state_dict'),
    (lambda c: c['optimizer']['state'][0]['exp_avg'].add_(1e-7), 'other optimizer'),
    (lambda c: c['optimizer']['param_groups'][0].update(lr=.2), 'other optimizer'),
    (lambda c: c['param_schedulers'][0].update(last_step=7), 'other param_schedulers'),
], ids=['equal', 'sign of a zero', 'one more', 'optimizer', 'rate', 'scheduler'])
def test_a_bit_that_differs_is_found(change: Callable[[dict], object], found: str,
                                     tmp_path: Path) -> None:
    reference = write_end(tmp_path / 'reference')
    assert difference(write_end(tmp_path / 'trial', change=change), reference) == found


def test_a_loss_that_differs_is_found(tmp_path: Path) -> None:
    reference = write_end(tmp_path / 'reference')
    assert difference(write_end(tmp_path / 'a', {**LOSSES, 5: .21}), reference) == 'other losses'
    assert difference(write_end(tmp_path / 'b', {5: LOSSES[5]}), reference) == ''


def test_an_end_that_is_not_there_is_found(tmp_path: Path) -> None:
    reference, trial = write_end(tmp_path / 'reference'), write_end(tmp_path / 'trial')
    (trial / '.iter_6.pth.tmp').touch()
    assert difference(trial, reference) == 'left .iter_6.pth.tmp'
    (trial / 'iter_8.pth').unlink()
    assert difference(trial, reference) == 'did not reach the end'


def test_the_exit_code_is_that_of_the_worst_trial() -> None:
    good, bad = Trial(1., 'training', 3), Trial(1., 'training', 3, fault='other losses')
    assert [report(trials) for trials in ([good], [good, bad], [])] == [0, 1, 1]
