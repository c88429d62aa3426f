"""Graphs of training passes. A recorder of the test computes on the CPU where a CUDA graph would be
replayed, into tensors that stay where they are; where there is a GPU, the graphs are real."""
import copy
import gc
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from visattn_dense.errors import UserError
from visattn_dense.layers.training_graphs import ReplayedTraining, Step

from .tiny_backbones import BACKBONES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


class Recorder:
    """Computes again, as a graph does: each replay overwrites what the one before has left."""

    def __init__(self) -> None:
        self.recorded = self.forwards = self.backwards = 0

    def __call__(self, call: Callable, parameters: list[Tensor]) -> Step:
        self.recorded += 1
        for _ in range(3):                               # as before a recording on a GPU
            live = call()
            last = torch.autograd.grad(sum(out.sum() for out in live if out.requires_grad),
                                       parameters, allow_unused=True)
        outputs = tuple(out.detach().clone() for out in live)
        grads = tuple(torch.zeros_like(out) if out.requires_grad else None for out in live)
        found = tuple(None if grad is None else grad.clone() for grad in last)

        @torch.enable_grad()
        def forward() -> None:
            nonlocal live
            self.forwards += 1
            live = call()
            for kept, out in zip(outputs, live, strict=True):
                kept.copy_(out.detach())

        def backward() -> None:
            self.backwards += 1
            new = torch.autograd.grad(
                [out for out in live if out.requires_grad], parameters,
                [grad for grad in grads if grad is not None], allow_unused=True)
            for kept, grad in zip(found, new, strict=True):
                if kept is not None:
                    kept.copy_(grad)

        return Step(forward, outputs, backward, grads, found)


def pair(family: str, **kwargs: object) -> tuple[nn.Module, nn.Module, Recorder]:
    """A model in training, the same with graphs, and their recorder."""
    torch.manual_seed(0)
    model = BACKBONES[family](**kwargs).train()
    fast, recorder = copy.deepcopy(model), Recorder()
    fast.forward = ReplayedTraining(fast, 2, recorder)
    return model, fast, recorder


def loss_of(outputs: tuple[Tensor, ...]) -> Tensor:
    return sum((out * out.detach().cos()).mean() for out in outputs)


def losses_of(model: nn.Module, device: str, autocast: bool, optimizer: torch.optim.Optimizer
              ) -> list[float]:
    """Six steps at two sizes in turn."""
    torch.manual_seed(1)
    losses = []
    for size in ((64, 64), (64, 64), (70, 97), (64, 64), (70, 97), (70, 97)):
        x = torch.randn(2, 3, *size, device=device)
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            loss = loss_of(model(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def assert_equal(model: nn.Module, fast: nn.Module) -> None:
    """All parameters, gradients and buffers are the same, to the bit."""
    for (name, one), other in zip(model.named_parameters(), fast.parameters(), strict=True):
        assert torch.equal(one, other), name
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or torch.equal(one.grad, other.grad), name
    for (name, one), other in zip(model.named_buffers(), fast.buffers(), strict=True):
        assert torch.equal(one, other), name


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('autocast', [False, True])
def test_a_training_with_graphs_has_the_numbers_of_one_without(family, autocast):
    """Losses, weights, gradients, statistics of norms and random draws, at two sizes in turn."""
    model, fast, recorder = pair(family, drop_path_rate=.5)
    losses = [losses_of(each, 'cpu', autocast, torch.optim.AdamW(each.parameters(), lr=1e-3))
              for each in (model, fast)]
    assert losses[0] == losses[1]
    assert (recorder.recorded, recorder.forwards, recorder.backwards) == (2, 4, 4)
    assert_equal(model, fast)


@pytest.fixture
def cswin() -> tuple[nn.Module, nn.Module, Recorder]:
    return pair('CSWin')


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


def train(model: nn.Module, x: Tensor = X) -> None:
    loss_of(model(x)).backward()


def test_gradients_are_accumulated(cswin):
    for each in cswin[:2]:
        for scale in (1, 2, 3, 4):
            train(each, scale * X)
    assert cswin[2].forwards == 3
    assert_equal(*cswin[:2])


def test_two_passes_before_their_gradients_are_both_right(cswin):
    """As with siamese networks: the second pass must not overwrite what the first one keeps."""
    for each in cswin[:2]:
        for _ in range(3):
            (loss_of(each(X)) * loss_of(each(2 * X))).backward()
    assert cswin[2].forwards == 3                        # of six; the others were plain
    assert_equal(*cswin[:2])


def test_a_pass_whose_gradients_nobody_wants_leaves_the_graph_free(cswin):
    _, fast, recorder = cswin
    outputs = [fast(X) for _ in range(4)]
    assert recorder.forwards == 1 and outputs[1][0].requires_grad
    del outputs
    gc.collect()
    fast(X)
    assert recorder.forwards == 2


def test_some_outputs_may_have_no_gradient_and_some_weights_no_part():
    model, fast, recorder = pair('CSWin', frozen_stages=1)
    for each in (model, fast):
        for _ in range(3):
            outputs = each(X)
            assert [out.requires_grad for out in outputs] == [False, True, True, True]
            outputs[2].sum().backward()
    assert recorder.backwards == 2
    assert_equal_where_trained(model, fast)


def assert_equal_where_trained(model: nn.Module, fast: nn.Module) -> None:
    """A weight that takes no part has no gradient without a graph, and zeros with one."""
    for (name, one), other in zip(model.named_parameters(), fast.named_parameters(), strict=True):
        one, other = one.grad, other[1].grad
        assert (other is None or not other.any()) if one is None else torch.equal(one, other), name


def test_what_moves_freezes_or_changes_its_mode_gets_another_graph(cswin):
    model, fast, recorder = cswin
    fast.forward.limit = 4
    for each in (model, fast):
        for change in (lambda m: None, lambda m: m.norm4.weight.requires_grad_(False),
                       lambda m: m.stage3[0].eval(),
                       lambda m: setattr(m.norm3.weight, 'data',
                                         m.norm3.weight.data.clone())):
            change(each)
            for _ in range(3):
                train(each)
    assert (recorder.recorded, recorder.forwards) == (4, 4 * 2)
    assert_equal(model, fast)


def test_evaluation_other_modes_and_hooks_are_plain(cswin):
    model, fast, recorder = cswin
    for _ in range(2):
        train(fast)
    forwards = recorder.forwards
    with torch.no_grad():
        fast(X)
    fast.eval()(X)
    fast.train()(X.clone().requires_grad_())[0].sum().backward()
    seen = []
    handle = fast.stage1[0].register_forward_hook(lambda *_: seen.append(1))
    fast(X)
    handle.remove()
    assert (recorder.forwards, seen) == (forwards, [1])


def test_the_graph_goes_backward_once(cswin):
    _, fast, _ = cswin
    train(fast)
    loss = loss_of(fast(X))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match='goes backward once'):
        loss.backward()


def test_distributed_training_gets_all_gradients(cswin):
    distributed.init_process_group('gloo', store=distributed.HashStore(), rank=0, world_size=1)
    try:
        for each in cswin[:2]:
            parallel = DistributedDataParallel(each)
            for _ in range(3):
                train(parallel)
    finally:
        distributed.destroy_process_group()
    assert cswin[2].backwards == 2
    assert_equal(*cswin[:2])


def test_copies_and_pickles_are_whole(cswin):
    _, fast, _ = cswin
    fast.forward = ReplayedTraining(fast, 2)
    for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
        assert other.forward.module is other
        train(other)


def test_on_a_cpu_nothing_is_recorded():
    model = BACKBONES['CSWin']().train()
    model.graph_training()
    for _ in range(3):
        train(model)
    assert not model.forward._graphs


def test_a_failed_recording_leaves_no_statistics():
    """Its passes count no batches in the running statistics of norms."""
    model, fast, _ = pair('EfficientViT')

    def fails(call: Callable, parameters: list[Tensor]) -> Step:
        call()
        raise RuntimeError('CUDA out of memory')

    fast.forward = ReplayedTraining(fast, 1, fails)
    for _ in range(3):
        x = torch.randn(2, 3, 64, 64)
        loss_of(model(x)).backward()
        loss_of(fast(x)).backward()
    assert_equal(model, fast)


def test_with_cp_is_refused():
    with pytest.raises(UserError, match='with_cp'):
        BACKBONES['CSWin'](with_cp=True).graph_training()


@gpu
@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('autocast', [False, True])
def test_cuda_graphs_train_as_without(family, autocast, caplog):
    model, fast, _ = pair(family, drop_path_rate=.5)
    model.cuda()
    fast.cuda().graph_training()
    losses = [losses_of(each, 'cuda', autocast, torch.optim.SGD(each.parameters(), lr=1e-2))
              for each in (model, fast)]
    assert 'no graph' not in caplog.text and len(fast.forward._graphs) == 2
    torch.testing.assert_close(*losses, rtol=2e-2 if autocast else 1e-4, atol=1e-5)
    for one, other in zip(model.buffers(), fast.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-4)
