"""Optimizers step on few groups of parameters and averages move together; nobody sees another
difference."""
import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.model import ExponentialMovingAverage, MomentumAnnealingEMA, StochasticWeightAverage
from torch import nn, optim

from visattn_dense.openmmlab.engine.few_launches import average_together, step_by_few_groups


def make(optimizer: Callable[..., optim.Optimizer]) -> tuple[nn.Module, optim.Optimizer]:
    """A group for each of twelve parameters, as mmengine makes them, with three settings."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    return model, optimizer([ConfigDict(
        params=[parameter], lr=.1 if name.startswith('5') else .01,
        weight_decay=0. if name.endswith('bias') else .02, param_names=[name])
        for name, parameter in model.named_parameters()])


def train(model: nn.Module, optimizer: optim.Optimizer) -> None:
    scheduler = optim.lr_scheduler.LinearLR(optimizer, total_iters=4)
    for i in range(5):
        optimizer.zero_grad()
        model(torch.full((2, 4), i + 1.)).square().mean().backward()
        model[1].weight.grad = None if i == 2 else model[1].weight.grad
        optimizer.step()
        scheduler.step()


KINDS = [partial(optim.AdamW, lr=.01), partial(optim.AdamW, lr=.01, foreach=True),
         partial(optim.SGD, lr=.01, momentum=.9), partial(optim.Adam, lr=.01, amsgrad=True),
         partial(optim.RMSprop, lr=.01), partial(optim.AdamW, lr=.01, fused=True)]


@pytest.mark.parametrize('kind', KINDS)
def test_the_numbers_and_the_checkpoint_stay(kind):
    (model, plain), (other, few) = make(kind), make(kind)
    step_by_few_groups(few)
    groups = few.param_groups
    train(model, plain)
    train(other, few)
    assert few.param_groups is groups and len(groups) == 12
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)
    saved, wanted = few.state_dict(), plain.state_dict()
    assert saved['param_groups'] == wanted['param_groups']
    for i, state in wanted['state'].items():
        for name, value in state.items():
            assert torch.equal(torch.as_tensor(saved['state'][i][name]), torch.as_tensor(value))
    plain.load_state_dict(copy.deepcopy(saved))


def test_a_step_sees_a_group_for_each_setting(monkeypatch):
    seen = []
    plain = optim.AdamW._init_group

    def init_group(self, group, *args):
        seen.append(len(group['params']))
        return plain(self, group, *args)

    monkeypatch.setattr(optim.AdamW, '_init_group', init_group)
    model, optimizer = make(KINDS[0])
    step_by_few_groups(optimizer)
    train(model, optimizer)
    assert len(seen) == 5 * 4 and seen[:4] == [5, 5, 1, 1]


def test_groups_come_back_after_an_error(monkeypatch):
    _, optimizer = make(KINDS[0])
    step_by_few_groups(optimizer)

    def broken() -> None:
        raise RuntimeError('out of memory')

    with pytest.raises(RuntimeError, match='out of memory'):
        optimizer.step(broken)
    assert len(optimizer.param_groups) == 12


def test_optimizers_of_others_are_left_alone():
    class Whole(optim.SGD):
        """Might look at all parameters of a group."""

    _, optimizer = make(partial(Whole, lr=.1))
    step_by_few_groups(optimizer)
    assert 'step' not in vars(optimizer)


@pytest.mark.parametrize('kind, calls', [
    (partial(ExponentialMovingAverage, momentum=.1, update_buffers=True), 4),
    (partial(MomentumAnnealingEMA, momentum=.01, gamma=3, interval=2), 2),
    (partial(StochasticWeightAverage), 0)])
def test_averages_move_together_by_the_same_numbers(kind, calls, monkeypatch):
    found = []
    plain = torch._foreach_lerp_
    monkeypatch.setattr(torch, '_foreach_lerp_', lambda *args: (found.append(args), plain(*args)))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    one, together = kind(model), kind(model)
    average_together(together)
    for _ in range(5):
        model(torch.randn(3, 4))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        for averaged in (one, together):
            averaged.update_parameters(model)
        for a, b in zip(one.state_dict().values(), together.state_dict().values(), strict=True):
            assert torch.equal(a, b)
    assert len(found) == calls
    assert one.state_dict().keys() == copy.deepcopy(together).state_dict().keys()
