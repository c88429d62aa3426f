"""CUDA graphs of a backbone. Without a GPU, a recorder on the CPU takes the place of the real one:
the choice of what is recorded is tested everywhere, and the graphs where there is a GPU."""
import copy
import logging
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import plan
from benchmarks.options import Size
from visattn_dense.layers import cuda_graphs, optimize_for_inference
from visattn_dense.layers.cuda_graphs import ReplayedForward

from .tiny_backbones import BACKBONES

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')


class Double(nn.Module):
    def __init__(self):
        super().__init__()
        self.passes = 0

    def forward(self, x: Tensor) -> tuple[Tensor]:
        self.passes += 1
        return x * 2,


class Recorder:
    """Runs the call again, where a graph would be replayed."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, call):
        self.recorded += 1
        outputs = call()

        def replay() -> None:
            self.replayed += 1
            for output, new in zip(outputs, call(), strict=True):
                output.copy_(new)
        return replay, outputs


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(cuda_graphs, '_can_replay', lambda x: not torch.is_grad_enabled())
    return Recorder()


@torch.inference_mode()
def test_a_shape_is_recorded_when_it_comes_again(recorder):
    forward = ReplayedForward(Double(), 2, recorder)
    results = []
    for i in range(4):
        x = torch.full((1, 2, 3, 4), float(i))
        results.append(forward(x)[0])
    assert (recorder.recorded, recorder.replayed) == (1, 3)
    # The caller keeps its results: no replay writes to them.
    assert [float(result.mean()) for result in results] == [0, 2, 4, 6]
    forward(torch.ones(1, 2, 5, 5))
    assert recorder.recorded == 1


@torch.inference_mode()
def test_the_graph_that_was_not_used_for_the_longest_time_goes(recorder):
    forward = ReplayedForward(Double(), 2, recorder)
    a, b, c = (torch.ones(1, 1, side, side) for side in (2, 3, 4))
    for x in (a, a, b, b, a, c, c):                     # the graph of b goes
        forward(x)
    assert recorder.recorded == 3
    forward(a)
    assert recorder.recorded == 3
    forward(b)
    assert recorder.recorded == 4


def test_gradients_and_copies_are_those_of_the_module(recorder):
    module = Double()
    module.forward = ReplayedForward(module, 2, recorder)
    x = torch.ones(1, 1, 2, 2, requires_grad=True)
    for _ in range(3):
        module(x)[0].sum().backward()
    assert recorder.recorded == 0 and (x.grad == 6).all()
    copied = copy.deepcopy(module)
    assert copied.forward.module is copied
    assert module.forward.module is module


def test_a_pickled_module_is_whole():
    module = BACKBONES['CSWin']().eval()
    module.forward = ReplayedForward(module, 2)
    loaded = pickle.loads(pickle.dumps(module))
    assert loaded.forward.module is loaded
    x = torch.randn(1, 3, 64, 64)
    for found, wanted in zip(loaded(x), module(x), strict=True):
        torch.testing.assert_close(found, wanted)


@torch.inference_mode()
def test_a_failed_recording_is_said_once_and_the_module_computes(monkeypatch, caplog):
    monkeypatch.setattr(cuda_graphs, '_can_replay', lambda x: True)

    def fails(call):
        raise RuntimeError('operation not permitted when stream is capturing')
    forward = ReplayedForward(Double(), 2, fails)
    with caplog.at_level(logging.WARNING, 'visattn_dense'):
        for _ in range(4):
            assert (forward(torch.ones(1, 1, 2, 2))[0] == 2).all()
    assert caplog.text.count('no CUDA graph of Double: operation not permitted') == 1


def test_on_a_cpu_nothing_is_recorded():
    model = optimize_for_inference(BACKBONES['CSWin']().eval(), cuda_graphs=2)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x)
        for _ in range(2):
            for found, wanted in zip(model(x), expected, strict=True):
                torch.testing.assert_close(found, wanted)


class NothingOnTheCpu(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == 'cuda', operator
        return out


@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_no_pass_waits_for_the_gpu_or_copies_to_it(family, dtype):
    """On fake tensors: a value that the CPU reads, or a copy from the CPU, ends a recording."""
    plan.run_on_shapes(BACKBONES[family], 2, Size(97, 64), dtype, NothingOnTheCpu())


@gpu
@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize('mode', [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize('autocast', [False, True])
def test_replayed_outputs_are_those_of_the_model(family, mode, autocast, caplog):
    torch.manual_seed(0)
    model = BACKBONES[family]().eval().cuda()
    fast = optimize_for_inference(copy.deepcopy(model), cuda_graphs=2)
    with mode(), torch.autocast('cuda', torch.bfloat16, enabled=autocast):
        for size in ((64, 96), (97, 64), (64, 96), (64, 96), (97, 64), (64, 96)):
            x = torch.randn(2, 3, *size, device='cuda')
            for found, wanted in zip(fast(x), model(x), strict=True):
                error = 3e-2 if autocast else 1e-4
                torch.testing.assert_close(found, wanted, rtol=error, atol=error)
    assert 'no CUDA graph' not in caplog.text
