"""Graphs of a backbone: on the CPU real ones, and where there is a GPU, CUDA graphs. A recorder of
the test shows what is recorded when."""
import copy
import gc
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks import plan
from benchmarks.options import Size
from visattn_dense.layers import graphs, optimize_for_inference
from visattn_dense.layers.graphs import ReplayedForward
from visattn_dense.ops import native
from visattn_dense.ops.group_attention import rows
from visattn_dense.ops.kept import kept
from visattn_dense.ops.native import recording

from .interpreting import fake_gpu
from .tiny_backbones import BACKBONES

kernels = pytest.mark.skipif(not native.available(), reason='no compiled kernels')
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
        call()

        def replay():
            self.replayed += 1
            return call()
        return replay


@pytest.fixture
def recorder(monkeypatch):
    monkeypatch.setattr(graphs, '_can_replay', lambda x: not torch.is_grad_enabled())
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
    for x in (a, a, b, b, a, c, c, c, c):
        forward(x)
    assert recorder.recorded == 2
    forward(c)                                          # the graph of b goes
    assert recorder.recorded == 3
    forward(a)
    assert recorder.recorded == 3
    forward(b)
    assert recorder.recorded == 3


@torch.inference_mode()
def test_more_shapes_than_graphs_are_not_recorded_again_and_again(recorder):
    forward = ReplayedForward(Double(), 2, recorder)
    shapes = [torch.ones(1, 1, side, side) for side in (2, 3, 4)]
    for _ in range(20):
        for x in shapes:
            forward(x)
    assert recorder.recorded == 2
    assert recorder.replayed == 2 * 19


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
    monkeypatch.setattr(graphs, '_can_replay', lambda x: True)

    def fails(call):
        raise RuntimeError('operation not permitted when stream is capturing')
    forward = ReplayedForward(Double(), 2, fails)
    with caplog.at_level(logging.WARNING, 'visattn_dense'):
        for _ in range(4):
            assert (forward(torch.ones(1, 1, 2, 2))[0] == 2).all()
    assert caplog.text.count('no graph of Double: operation not permitted') == 1


@kernels
@torch.inference_mode()
def test_an_expanded_or_cut_image_is_recorded(caplog):
    """A grey image as three channels, an image for a whole batch, a part of a larger image."""
    model = BACKBONES['CSWin']().eval()
    prepared = optimize_for_inference(copy.deepcopy(model), graphs=4)
    large = torch.randn(1, 3, 80, 100)
    for x in (large[:, :1].expand(-1, 3, -1, -1), large.expand(2, -1, -1, -1),
              large[..., 3:67, ::2], large.mT):
        for _ in range(3):
            for out, expected in zip(prepared(x), model(x.clone()), strict=True):
                torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    assert len(prepared.forward._graphs) == 4 and 'no graph' not in caplog.text


@pytest.mark.skipif(native.available(), reason='there are compiled kernels')
def test_on_a_cpu_without_kernels_nothing_is_recorded():
    model = optimize_for_inference(BACKBONES['CSWin']().eval(), graphs=2)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        for _ in range(3):
            model(x)
    assert not model.forward._graphs


@kernels
@pytest.mark.parametrize('family', BACKBONES)
@pytest.mark.parametrize(('mode', 'dtype', 'autocast'), [
    (torch.no_grad, torch.float32, False), (torch.inference_mode, torch.float32, False),
    (torch.inference_mode, torch.bfloat16, False), (torch.no_grad, torch.float32, True)])
def test_on_a_cpu_replays_give_the_outputs_of_the_model(family, mode, dtype, autocast, caplog):
    torch.manual_seed(0)
    model = optimize_for_inference(BACKBONES[family]().to(dtype).eval())
    fast = copy.deepcopy(model)
    fast.forward = ReplayedForward(fast, 2)
    seen = []
    with mode(), torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        for size in ((64, 96), (97, 61), (64, 96), (64, 96), (97, 61), (97, 61), (64, 96)):
            x = torch.randn(2, 3, *size, dtype=dtype)
            found, wanted = fast(x), model(x)
            seen.append((found, wanted))
    assert len(fast.forward._graphs) == 2, caplog.text
    for found, wanted in seen:                # at the end: no replay has written to an output
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)


@kernels
@torch.inference_mode()
def test_a_graph_keeps_the_tables_that_the_kernels_read():
    model = optimize_for_inference(BACKBONES['BiFormer']().eval())
    fast = copy.deepcopy(model)
    fast.forward = ReplayedForward(fast, 1)
    x = torch.randn(1, 3, 70, 90)
    for _ in range(2):
        fast(x)
    for make in vars(rows).values():
        if hasattr(make, 'cache_clear'):
            make.cache_clear()
    gc.collect()
    others = [torch.full((size,), 7) for size in range(1, 400)]     # may take memory that is free
    for found, wanted in zip(fast(x), model(x), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert others


@kernels
@pytest.mark.parametrize('family', BACKBONES)
@torch.inference_mode()
def test_a_recording_makes_tables_anew(family, caplog):
    """Other shapes came since the first pass, and the tables of this one are gone."""
    model = optimize_for_inference(BACKBONES[family]().eval(), graphs=1)
    x = torch.randn(2, 3, 70, 90)
    first = model(x)
    for make in vars(rows).values():
        if hasattr(make, 'cache_clear'):
            make.cache_clear()
    for _ in range(2):
        for found, wanted in zip(model(x), first, strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
    assert len(model.forward._graphs) == 1, caplog.text


@kernels
@torch.inference_mode()
def test_what_is_kept_has_no_part_in_a_recording():
    """Replays write to the memory of a recording; later passes read the lists and tables."""
    weight = torch.randn(3)

    def call() -> tuple[torch.Tensor]:
        groups, _ = rows.window_groups(2, 31, 1, (31, 1), False)
        return groups.q_starts * kept(torch.Tensor.double, weight)[0],

    rows.window_groups.cache_clear()
    replay = native.record(call)
    for _ in range(2):
        torch.testing.assert_close(replay(), call())
        groups, _ = rows.window_groups(2, 31, 1, (31, 1), False)
        assert groups.q_starts.tolist() == [0, 31, 62]
    assert kept(torch.Tensor.double, weight) not in replay.recording.memory


@kernels
@pytest.mark.parametrize('family', ['CSWin', 'BiFormer'])
@torch.inference_mode()
def test_a_default_device_is_for_other_tensors(family):
    model = optimize_for_inference(BACKBONES[family]().eval(), graphs=1)
    x = torch.randn(2, 3, 58, 66)
    with torch.device('meta'):
        outputs = [model(x) for _ in range(3)]
    for found in outputs:
        for one, wanted in zip(found, model(x), strict=True):
            torch.testing.assert_close(one, wanted, rtol=0, atol=0)


@kernels
@torch.inference_mode()
def test_the_memory_of_a_recording_is_used_again():
    def call() -> tuple[torch.Tensor]:
        y = given
        for _ in range(50):
            y = torch.relu(y + 1)
        return y,

    given = torch.randn(64, 64)
    replay = native.record(call)
    blocks = replay.recording.memory._blocks.values()
    assert sum(map(len, blocks)) <= 3 * given.nbytes
    given.copy_(torch.randn(64, 64))
    torch.testing.assert_close(replay(), call(), rtol=0, atol=0)


class Counting(nn.Module):
    """Fills, writes in place, takes views, and uses operators with and without a form that writes
    to a given tensor."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.zeros(x.shape[-1], 3) + x.mean((0, 1, 2))[:, None]
        y[1:].add_(y[:-1].clone())
        values, index = y.flatten().topk(2)
        parts = torch.cat([y, y[:2]]).split(2)
        return x.permute(0, 2, 3, 1).contiguous().transpose(1, 2), values, index, parts[1], y.T


@kernels
@torch.inference_mode()
def test_operators_of_torch_are_made_again():
    module = Counting()
    forward = ReplayedForward(module, 1)
    for _ in range(4):
        x = torch.randn(2, 3, 5, 4)
        for found, wanted in zip(forward(x), module(x), strict=True):
            torch.testing.assert_close(found, wanted, rtol=0, atol=0)
            assert found.stride() == wanted.stride()
    assert len(forward._graphs) == 1


class Shares(nn.Module):
    """Gives an output twice, a part of an output, the image itself, and a constant."""

    def __init__(self):
        super().__init__()
        self.backbone = optimize_for_inference(BACKBONES['EfficientViT']().eval())
        self.constant = torch.ones(3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a, b, *_ = self.backbone(x)
        return a, a, a[:, 1:3], b.permute(0, 2, 3, 1), x, self.constant


@kernels
@torch.inference_mode()
def test_outputs_may_share_memory():
    module = Shares()
    forward = ReplayedForward(module, 1)
    seen = []
    for _ in range(5):
        x = torch.randn(1, 3, 64, 64)
        seen.append((forward(x), [output.clone() for output in module(x)]))
    assert len(forward._graphs) == 1
    for found, wanted in seen:
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert seen[-1][0][0].data_ptr() != seen[-2][0][0].data_ptr()


class Reads(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor]:
        return x * float(x.sum()),


@kernels
@torch.inference_mode()
def test_a_pass_that_reads_a_value_is_not_recorded(caplog):
    forward = ReplayedForward(Reads(), 1)
    for i in range(4):
        assert (forward(torch.full((1, 1, 1, 2), float(i)))[0] == 2 * i * i).all()
    assert caplog.text.count('no graph of Reads: aten._local_scalar_dense.default gives float') == 1


@kernels
@torch.inference_mode()
def test_a_hook_on_a_layer_is_called_at_every_pass():
    model = optimize_for_inference(BACKBONES['CSWin']().eval(), graphs=1)
    x = torch.randn(1, 3, 64, 64)
    for _ in range(3):
        model(x)
    assert len(model.forward._graphs) == 1
    called = []
    layer = next(part for part in model.modules() if isinstance(part, native_layers()))

    def hook(module: nn.Module, *_: object) -> None:
        if module is layer:
            called.append(1)

    for register in layer.register_forward_hook, register_module_forward_hook:
        called.clear()
        handle = register(hook)
        model(x)
        handle.remove()
        model(x)
        assert len(called) == 1


def native_layers() -> type:
    from visattn_dense.layers.packed import Packed
    return Packed


@kernels
def test_threads_may_share_a_model():
    model = optimize_for_inference(BACKBONES['CSWin']().eval())
    fast = copy.deepcopy(model)
    fast.forward = ReplayedForward(fast, 1)

    def both(seed: int) -> bool:
        x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            return all(torch.equal(*pair) for pair in zip(fast(x), model(x), strict=True))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(both, range(40)))


@kernels
@torch.inference_mode()
def test_another_number_of_threads_is_another_graph():
    model = optimize_for_inference(BACKBONES['CSWin']().eval(), graphs=2)
    x, before = torch.randn(1, 3, 64, 64), torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            for _ in range(2):
                model(x)
    finally:
        torch.set_num_threads(before)
    assert len(model.forward._graphs) == 2


class NothingOnTheCpu(TorchDispatchMode):
    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, out)):
            assert not isinstance(leaf, Tensor) or leaf.device.type == 'cuda', operator
        return out


@fake_gpu
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
    fast = optimize_for_inference(copy.deepcopy(model), graphs=2)
    with mode(), torch.autocast('cuda', torch.bfloat16, enabled=autocast):
        for size in ((64, 96), (97, 64), (64, 96), (64, 96), (97, 64), (64, 96)):
            x = torch.randn(2, 3, *size, device='cuda')
            for found, wanted in zip(fast(x), model(x), strict=True):
                error = 3e-2 if autocast else 1e-4
                torch.testing.assert_close(found, wanted, rtol=error, atol=error)
    assert 'no graph' not in caplog.text


def test_a_replay_computes_nothing_twice():
    # torch makes a form with `out` for every operator. Without a kernel of its own, it copies.
    assert recording._writing(torch.ops.aten.addmm.default) is not None
    for operator in (torch.ops.aten.convolution, torch.ops.aten.clone):
        assert recording._writing(operator.default) is None
