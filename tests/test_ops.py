"""The operators: every form beside the equation, and the one place that chooses among them."""
import itertools
import logging
import threading
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from visattn_dense import ops
from visattn_dense.attention import CrossShapedWindowAttention, SelfAttention
from visattn_dense.ops import choose
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.choose import OPERATORS, Form, Operator, reference_form
from visattn_dense.ops.depthwise import depthwise, depthwise_norm
from visattn_dense.ops.group_attention import (
    full_attention,
    region_attention,
    routed_attention,
    window_attention,
)
from visattn_dense.ops.group_attention.fused import without_plans
from visattn_dense.ops.kept import kept
from visattn_dense.ops.linear import linear, mlp
from visattn_dense.ops.linear_attention import (
    focused_attention,
    performer_attention,
    relu_attention,
)
from visattn_dense.ops.norm_act import Norm, TrainingNorm, norm_act
from visattn_dense.ops.pointwise import grouped_pointwise
from visattn_dense.ops.routing import region_means, top_regions


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def kernel(channels: int, side: int = 3) -> dict[str, Tensor]:
    return dict(kernel=random(channels, 1, side, side), bias=random(channels))


def kernels(channels: int, side: int = 3, *, kinds: int = 1) -> dict[str, list[Tensor]]:
    """For each kind of windows."""
    return dict(kernels=[random(channels, 1, side, side) for _ in range(kinds)],
                biases=[random(channels) for _ in range(kinds)])


def routing(batch: int, regions: int, topk: int) -> Tensor:
    return torch.rand(batch, regions, regions).topk(topk).indices


# The operator, its tensors with gradients, its other arguments.
CALLS = {
    'full': (full_attention, lambda: [random(2, 7, 10), random(2, 7, 10), random(2, 7, 6)],
             lambda: dict(num_heads=2, scale=.3)),
    'full, fewer keys': (
        full_attention, lambda: [random(2, 7, 10), random(2, 3, 10), random(2, 3, 6)],
        lambda: dict(num_heads=2)),
    'full, keys in columns': (
        full_attention, lambda: [random(2, 7, 10), random(2, 10, 7).mT, random(2, 6, 7).mT],
        lambda: dict(num_heads=2)),
    'windows': (window_attention, lambda: [random(2, 5, 7, 3, 6)],
                lambda: dict(windows=[(3, 2)], num_heads=3, **kernels(6))),
    'windows, padding left out': (window_attention, lambda: [random(1, 5, 3, 3, 4)],
                                  lambda: dict(windows=[(2, 3)], num_heads=1, scale=.7,
                                               padding_counts=False, **kernels(4, 5))),
    'stripes of two directions': (window_attention, lambda: [random(2, 5, 7, 3, 12)],
                                  lambda: dict(windows=[(5, 2), (3, 7)], num_heads=4,
                                               **kernels(6, kinds=2))),
    'routed': (routed_attention, lambda: [random(2, 5, 3, 2, 7), random(2, 5, 4, 2, 7),
                                          random(2, 5, 4, 2, 3)],
               lambda: dict(index=routing(2, 5, 3), scale=.4,
                            weight=torch.rand(2, 5, 3).double())),
    'regions': (region_attention, lambda: [random(2, 6, 9, 10), random(2, 6, 9, 10),
                                           random(2, 6, 9, 4)],
                lambda: dict(index=routing(2, 9, 4), num_heads=2, n_win=3, scale=.5)),
    'regions, pooled': (region_attention, lambda: [random(1, 4, 6, 6) for _ in range(3)],
                        lambda: dict(index=routing(1, 4, 2), num_heads=3, n_win=2,
                                     scale=.5, weight=torch.rand(1, 4, 2).double(),
                                     pool=nn.MaxPool2d((1, 2)))),
    'region means': (region_means, lambda: [random(2, 6, 9, 70)], lambda: dict(n_win=3)),
    'top regions': (top_regions, lambda: [random(2, 19, 10), random(2, 19, 10)],
                    lambda: dict(count=5, scale=.3)),
    'top regions, fewer keys': (top_regions, lambda: [random(2, 19, 10), random(2, 6, 10)],
                                lambda: dict(count=5, scale=.3)),
    'top regions, all': (top_regions, lambda: [random(1, 4, 3), random(1, 4, 3)],
                         lambda: dict(count=9, scale=-2.)),
    'focused': (focused_attention, lambda: [random(2, 5, 7, 3, 6)],
                lambda: dict(window=(3, 2), num_heads=2, position=random(1, 6, 6),
                             scale=random(1, 1, 6), power=3, epsilon=1e-6, **kernel(6, 5))),
    'relu': (relu_attention, lambda: [random(2, 3, 3, 5, 11)], lambda: dict(epsilon=1e-15)),
    'relu, two sets': (relu_attention, lambda: [random(2, 3, 3, 5, 11), random(2, 3, 3, 5, 11)],
                       lambda: dict(epsilon=1e-6)),
    'relu, two sets, NHWC': (
        relu_attention, lambda: [random(1, 7, 3, 3, 5).permute(0, 2, 3, 4, 1) for _ in range(2)],
        lambda: dict(epsilon=1e-6)),
    'relu, NHWC': (relu_attention, lambda: [random(2, 11, 3, 3, 5).permute(0, 2, 3, 4, 1)],
                   lambda: dict(epsilon=1e-6)),
    'performer': (performer_attention, lambda: [random(2, 11, 6) / 3 for _ in range(3)],
                  lambda: dict(w=random(4, 6), epsilon=1e-8)),
    'depthwise': (depthwise, lambda: [random(2, 5, 7, 3)],
                  lambda: dict(weight=random(3, 1, 5, 5), bias=random(3), plus_input=True)),
    'depthwise, added': (depthwise, lambda: [random(2, 5, 7, 3)],
                         lambda: dict(weight=random(3, 1, 3, 3), onto=random(2, 5, 7, 3),
                                      activation='hardswish')),
    'depthwise, added to each image': (
        depthwise, lambda: [random(2, 5, 7, 3)],
        lambda: dict(weight=random(3, 1, 3, 3), onto=random(1, 5, 7, 3))),
    'depthwise, stride': (depthwise, lambda: [random(2, 5, 8, 3)],
                          lambda: dict(weight=random(3, 1, 3, 3), bias=random(3), stride=2)),
    'depthwise, windows': (depthwise, lambda: [random(2, 5, 7, 3)],
                           lambda: dict(weight=random(3, 1, 5, 5), window=(2, 3), plus_input=True)),
    'depthwise, norm': (depthwise_norm, lambda: [random(2, 5, 7, 3)],
                        lambda: dict(weight=random(3, 1, 3, 3), bias=random(3), eps=1e-3,
                                     norm_weight=random(3), norm_bias=random(3), dtype=None)),
    'grouped pointwise': (grouped_pointwise, lambda: [random(2, 3, 5, 8), random(6, 4, 1, 1)],
                          lambda: dict(groups=2)),
    'norm and activation': (
        norm_act, lambda: [random(2, 7, 3, 5), random(7)],
        lambda: dict(norm=Norm(random(7), random(7).square(), random(7), 1e-3),
                     activation='gelu_tanh')),
    'norm by the batch and activation': (
        norm_act, lambda: [random(2, 7, 3, 5), random(7)],
        lambda: dict(norm=TrainingNorm(random(7), random(7), random(7), torch.tensor(4), .1, 1e-3),
                     activation='hardswish', onto=random(2, 7, 3, 5))),
    'bias and activation': (norm_act, lambda: [random(2, 7, 3, 5), random(7)],
                            lambda: dict(activation='hardswish')),
    'add_norm': (add_norm, lambda: [random(2, 5, 3, 7), random(2, 5, 3, 7), random(7), random(7)],
                 lambda: dict(eps=1e-3, scale=random(2, 1, 1, 1))),
    'add_norm, bias': (add_norm, lambda: [random(2, 5, 7), random(2, 5, 7), random(7), random(7)],
                       lambda: dict(eps=1e-3, scale=random(2, 1, 1), update_bias=random(7))),
    'add_norm, one update': (
        add_norm, lambda: [random(2, 5, 3, 7), random(1, 1, 1, 7), random(7), random(7)],
        lambda: dict(eps=1e-3)),
    'linear': (linear, lambda: [random(2, 5, 7), random(3, 7), random(3)], dict),
    'perceptron': (mlp, lambda: [random(2, 5, 7), random(9, 7), random(9), random(3, 9), random(3)],
                   dict),
    'norm alone': (partial(add_norm, update=None), lambda: [random(2, 5, 7)],
                   lambda: dict(eps=1e-3, weight=random(7), bias=random(7))),
}


def call(operator, *args, **kwargs) -> Tensor:
    """The result; several results as one."""
    out = operator(*args, **kwargs)
    return out if isinstance(out, Tensor) else torch.cat(out, -1)


@pytest.mark.parametrize('name', CALLS)
def test_torch_computes_the_equation_and_its_gradients(name):
    operator, tensors, options = CALLS[name]
    torch.manual_seed(0)
    inputs, rest = [t.requires_grad_() for t in tensors()], options()
    found = []
    for mode in ('auto', 'reference'):
        out = call(operator, *inputs, **rest, mode=mode)
        weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
        found.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for fast, slow in zip(*found, strict=True):
        torch.testing.assert_close(fast, slow)


@pytest.mark.parametrize('name', CALLS)
@torch.no_grad()
def test_inference_computes_the_equation(name):
    """In float32, by the compiled kernels where there is a compiler."""
    operator, tensors, options = CALLS[name]
    torch.manual_seed(0)
    inputs, rest = [t.float() for t in tensors()], options()
    rest = tree_map(lambda value: value.float() if isinstance(value, Tensor)
                    and value.is_floating_point() else value, rest)
    expected = call(operator, *inputs, **rest, mode='reference')
    torch.testing.assert_close(call(operator, *inputs, **rest, mode='inference'), expected,
                               rtol=1e-4, atol=1e-5)


WRONG = {
    'norm': (add_norm, (None, torch.ones(7), torch.ones(7)), dict(eps=1e-3)),
    'depthwise': (depthwise, (torch.ones(7, 1, 3, 3),), {}),
    'depthwise, norm': (depthwise_norm, (torch.ones(7, 1, 3, 3), None, torch.ones(7),
                                         torch.ones(7)), dict(eps=1e-3, dtype=None)),
    'grouped pointwise': (grouped_pointwise, (torch.ones(7, 1, 1, 1),), dict(groups=7)),
    'windows': (lambda x, weight, **options: window_attention(
        x[:, :, :, None].expand(-1, -1, -1, 3, -1).contiguous(), [(2, 3)], num_heads=1,
        kernels=[weight], biases=[None], **options), (torch.ones(7, 1, 3, 3),), {}),
    'focused': (lambda x, weight, **options: focused_attention(
        x[:, :, :, None].expand(-1, -1, -1, 3, -1).contiguous(), (2, 3), num_heads=1,
        position=x.new_ones(1, 6, x.shape[-1]), scale=x.new_ones(1, 1, x.shape[-1]), power=3,
        epsilon=1e-6, kernel=weight, bias=None, **options), (torch.ones(7, 1, 3, 3),), {}),
}


@pytest.mark.parametrize('name', WRONG)
@pytest.mark.parametrize('channels', [3, 14])
@pytest.mark.parametrize('mode', ['auto', 'inference'])
@torch.no_grad()
def test_a_map_of_other_channels_is_an_error(name, channels, mode):
    """A kernel would read beside the parameters."""
    operator, parameters, options = WRONG[name]
    with pytest.raises(RuntimeError):
        operator(torch.ones(1, 4, 5, channels), *parameters, **options, mode=mode)
    operator(torch.ones(1, 4, 5, 7), *parameters, **options, mode=mode)


def test_every_operator_is_held_to_its_equation():
    tested = {getattr(operator, 'func', operator).name for operator, _, _ in CALLS.values()}
    assert tested == {name for name in OPERATORS if name != 'toy'}


def test_depthwise_equation_by_hand():
    """A kernel that looks one row up: the map moves down by one, zeros come in."""
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 0, 1] = 2.
    x = torch.tensor([[1., 2.], [3., 4.]]).view(1, 2, 2, 1)
    out = depthwise(x, weight, torch.tensor([.5]), mode='reference')
    assert out.flatten().tolist() == [.5, .5, 2.5, 4.5]


@pytest.fixture
def toy(monkeypatch):
    """An operator whose fast form takes positive numbers only; nothing is decided yet."""
    monkeypatch.setattr(choose, '_decisions', {})
    operator = Operator(
        'toy', Form('fast', lambda x: 'fast', lambda x: None if x > 0 else 'it is not positive',
                    devices=('cpu',)),
        Form('plain', lambda x: 'plain'), reference_form(lambda x: 'reference'))
    yield operator
    del OPERATORS['toy']


def test_the_first_form_without_a_reason_computes(toy):
    one = torch.ones(())
    assert [toy(one), toy(-one), toy(one.to('meta')), toy(one, mode='reference')] == [
        'fast', 'plain', 'plain', 'reference']


def test_a_decision_is_logged_once(toy, caplog):
    with caplog.at_level(logging.INFO, 'visattn_dense'):
        for sign in (-1, 1, -1, 1):
            toy(torch.tensor(float(sign)))
    assert sorted(record.getMessage() for record in caplog.records) == [
        'toy: fast computes', 'toy: not fast: it is not positive', 'toy: plain computes']
    assert ops.Decision('toy', 'fast', 'it is not positive') in ops.decisions()


def test_a_form_is_forced_for_one_operator_or_for_all(toy):
    one, (q, k, v) = torch.ones(()), (torch.randn(1, 3, 4) for _ in range(3))
    with ops.use_implementation('plain', operator='toy'):
        assert toy(one) == toy(one, mode='reference') == 'plain'
        with ops.use_implementation('reference'):
            assert toy(one) == 'reference'
            assert torch.equal(full_attention(q, k, v, num_heads=2),
                               full_attention(q, k, v, num_heads=2, mode='reference'))
        assert toy(one) == 'plain'
        with ops.use_implementation('auto'):
            assert toy(one) == 'fast'
    assert toy(one) == 'fast'


def test_a_forced_form_that_cannot_compute_is_an_error_that_says_why(toy):
    with ops.use_implementation('fast', operator='toy'):
        with pytest.raises(ValueError, match="'fast' of toy, but it is not positive; use 'auto'"):
            toy(-torch.ones(()))
    for wrong in (dict(form='slow', operator='toy'), dict(form='slow'),
                  dict(form='fast', operator='toys')):
        with pytest.raises(ValueError, match='is one of .*; got'):
            with ops.use_implementation(**wrong):
                pass


def test_cudnn_is_off_while_any_thread_attends_and_then_as_before():
    """Blocks of two threads that overlap: the first to enter is the first to leave."""
    entered, may_leave = threading.Event(), threading.Event()

    def other() -> None:
        with without_plans():
            entered.set()
            assert may_leave.wait(60)

    for before in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(before)
        thread = threading.Thread(target=other)
        try:
            with without_plans():
                entered.clear()
                may_leave.clear()
                thread.start()
                assert entered.wait(60)
            assert not torch.backends.cuda.cudnn_sdp_enabled()
            may_leave.set()
            thread.join()
            assert torch.backends.cuda.cudnn_sdp_enabled() == before
        finally:
            torch.backends.cuda.enable_cudnn_sdp(True)


def test_training_never_meets_the_compiled_kernels():
    x = torch.randn(1, 6, 6, 8)
    for module in (CrossShapedWindowAttention(8, 2, stripe_width=2), SelfAttention(8, 2)):
        for part in module.modules():
            if isinstance(part, ops.UsesOperators):
                part.mode = 'inference'
        with ops.use_implementation('compiled'), pytest.raises(ValueError, match='gradient'):
            module(x)
        module(x).sum().backward()
        assert all(p.grad is not None for p in module.parameters())


def test_what_was_prepared_follows_the_weight():
    calls = itertools.count()

    def double(weight: Tensor) -> Tensor:
        next(calls)
        return weight * 2

    weight = torch.ones(3)
    assert kept(double, weight) is kept(double, weight)
    weight += 1
    assert kept(double, weight).tolist() == [4, 4, 4]
    weight.data = torch.zeros(3)
    assert kept(double, weight).tolist() == [0, 0, 0]
    assert kept(double, torch.ones(3)).tolist() == [2, 2, 2] and next(calls) == 4


def test_what_was_prepared_in_another_thread_is_not_taken():
    """A thread prepares the weight for another size while this one compares its sizes."""
    weight = torch.ones(3)

    class Size(int):
        __hash__ = int.__hash__

        def __eq__(self, other: object) -> bool:
            if isinstance(other, Size):
                assert kept(torch.mul, weight, 5).tolist() == [5, 5, 5]
            return int(self) == int(other)

    for _ in range(2):
        assert kept(torch.mul, weight, Size(2)).tolist() == [2, 2, 2]
