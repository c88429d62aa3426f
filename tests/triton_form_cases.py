"""Cases of tests/test_triton_forms.py, which runs them in a process of their own: on the GPU where
there is one, else in Triton's interpreter, which has to be chosen before Triton is imported."""
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from visattn_dense.layers import TransformerBlock
from visattn_dense.ops import use_implementation
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.choose import Operator
from visattn_dense.ops.depthwise import depthwise

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
TOLERANCE = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nothing has written to holds NaN."""
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, device=DEVICE).to(dtype)


def inside_nan(t: Tensor, dims: tuple[int, ...] = (0, -1)) -> Tensor:
    """A view like `t`, with NaN around it in memory along `dims`."""
    shape = list(t.shape)
    for dim in dims:
        shape[dim] += 2
    whole = torch.full(shape, float('nan'), dtype=t.dtype, device=t.device)
    view = whole
    for dim in dims:
        view = view.narrow(dim, 1, t.shape[dim])
    return view.copy_(t)


def results(call: Callable[..., Tensor | tuple[Tensor, ...]],
            inputs: list[Tensor | None]) -> list[Tensor]:
    """The results, and unless gradients are off, the gradients of all inputs from random gradients
    of the results."""
    inputs = [None if t is None else t.detach().requires_grad_() for t in inputs]
    out = call(*inputs)
    out = (out,) if isinstance(out, Tensor) else out
    if not torch.is_grad_enabled():
        return [*out]
    torch.manual_seed(1)
    # Numbers that every dtype can hold.
    grads = [torch.randn(t.shape, device=DEVICE).bfloat16().to(t.dtype) for t in out]
    return [*out, *torch.autograd.grad(out, [t for t in inputs if t is not None], grads)]


def check(operator: Operator, inputs: list[Tensor | None], options: dict, *, slack: float = 1.,
          dtype: torch.dtype | None = None, call: Callable | None = None) -> None:
    """Hold results and gradients to the equation in float64.

    The error is measured against the largest entry of the expected tensor. The tolerance is that of
    `dtype`, by default of each result. `call` passes the inputs to the operator.
    """
    call = call or operator

    def wide(value):
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return value.double() if floating else None if isinstance(value, torch.dtype) else value

    with use_implementation('triton', operator=operator.name):
        found = results(lambda *ts: call(*ts, **options), inputs)
    exact = {key: wide(value) for key, value in options.items()}
    expected = results(lambda *ts: call(*ts, **exact, mode='reference'), [wide(t) for t in inputs])
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape, i
        error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-20)
        assert error < slack * TOLERANCE[dtype or a.dtype], (i, float(error))      # false for NaN


def sound(operator: Operator, *inputs: Tensor, **options) -> None:
    """The operator compiles whole, for any size of the second dimension of the first input, and
    gives the same gradients at every run."""
    with use_implementation('triton', operator=operator.name):
        compiled = torch.compile(lambda *ts: operator(*ts, **options), fullgraph=True,
                                 backend='aot_eager')
        torch._dynamo.mark_dynamic(inputs[0], 1)
        for a, b, c in zip(results(compiled, list(inputs)), *(
                results(lambda *ts: operator(*ts, **options), list(inputs)) for _ in range(2)),
                strict=True):
            assert torch.equal(a, b) and torch.equal(b, c)


STREAM, BRANCH = (torch.float32, torch.float32), (torch.float32, torch.bfloat16)


@pytest.mark.parametrize('shape', [(3, 5, 7), (2, 3, 11, 64), (1, 1, 1), (5, 33, 100)])
@pytest.mark.parametrize('dtypes', [STREAM, BRANCH, (torch.float16, torch.float16)])
@pytest.mark.parametrize('dropped', [False, True])
def test_sum_and_norm(shape, dtypes, dropped):
    """The stream and the branch, alike or not; a factor for each sample, or none."""
    x, update = (inside_nan(random(*shape, dtype=dtype)) for dtype in dtypes)
    scale = random(shape[0], *(1 for _ in shape[1:]), dtype=dtypes[1]) if dropped else None
    check(add_norm, [x, update, random(shape[-1]), random(shape[-1])],
          dict(eps=1e-3, scale=scale, dtype=dtypes[1]), dtype=dtypes[1])


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_norm_alone(dtype):
    """A stream of float32, NCHW in memory, and a norm of `dtype`."""
    x = random(2, 7, 3, 5).permute(0, 2, 3, 1)
    options = dict(eps=1e-5, dtype=dtype)
    check(add_norm, [x, None, random(7), random(7)], options, dtype=dtype)


def test_sum_and_norm_of_nothing():
    with use_implementation('triton', operator='add_norm'):
        weight = random(4).requires_grad_()
        for update in (None, random(0, 3, 4)):
            total, normed = add_norm(random(0, 3, 4), update, weight, random(4), eps=1e-5)
            assert total.shape == normed.shape == (0, 3, 4)
            assert torch.autograd.grad(normed.sum(), weight)[0].tolist() == [0, 0, 0, 0]


def test_sum_and_norm_are_sound():
    sound(add_norm, random(2, 5, 6), random(2, 5, 6), random(6), random(6), eps=1e-5,
          scale=random(2, 1, 1))


@pytest.mark.parametrize('unused', ['total', 'normed'])
def test_one_result_without_a_gradient(unused):
    inputs = [random(2, 3, 5), random(2, 3, 5, dtype=torch.bfloat16)]
    weight, bias, scale = random(5), random(5), random(2, 1, 1)
    found = []
    for form in ('triton', 'torch'):
        with use_implementation(form, operator='add_norm'):
            found.append(results(
                lambda *ts: add_norm(*ts, weight, bias, eps=1e-5, scale=scale)[unused == 'total'],
                inputs))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('training', [False, True])
def test_block_with_stochastic_depth(training):
    """The block draws the same samples, and its parameters get the same gradients."""
    block = TransformerBlock(6, torch.nn.Linear(6, 6), drop_path=.5).to(DEVICE).train(training)
    found = []
    for form in ('triton', 'torch'):
        torch.manual_seed(3)
        x = random(8, 3, 6).requires_grad_()
        with use_implementation(form, operator='add_norm'):
            out = block(x)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *block.parameters()])])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


MAPS = {
    # shape, side, options
    '3x3': ((2, 5, 7, 6), 3, {}),
    '5x5, added to a map': ((1, 7, 4, 3), 5, dict(onto=True)),
    '7x7 on a narrow map': ((2, 2, 1, 8), 7, {}),
    'added to its input': ((1, 3, 5, 65), 3, dict(plus_input=True)),
    'stride 2, odd': ((2, 5, 7, 4), 3, dict(stride=2)),
    'stride 2, even': ((1, 6, 8, 3), 5, dict(stride=2)),
    'windows beyond the map': ((2, 5, 7, 3), 5, dict(window=(3, 2), onto=True)),
    'stripes': ((1, 9, 5, 16), 3, dict(window=(9, 2))),
    'several tiles': ((2, 27, 40, 8), 3, dict(window=(4, 40))),
}


@pytest.mark.parametrize('case', MAPS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_depthwise(case, dtype):
    """The map lies in a larger tensor, as the values lie in q, k and v."""
    shape, side, options = MAPS[case]
    channels = shape[-1]
    inputs = [inside_nan(random(*shape, dtype=dtype)), random(channels, 1, side, side)]
    options = dict(options)
    if options.pop('onto', False):
        inputs.append(inside_nan(random(*shape, dtype=dtype)))
        check(depthwise, inputs, options, call=lambda x, weight, onto, **rest: depthwise(
            x, weight, onto=onto, **rest))
    else:
        check(depthwise, [*inputs, random(channels)], options)


def test_depthwise_is_sound():
    x = torch.cat([random(2, 5, 4, 6)] * 2, -1)[..., 3:9]
    sound(depthwise, x, random(6, 1, 3, 3), random(6), window=(2, 3))


@pytest.mark.parametrize('activation', ['relu', 'hardswish'])
def test_depthwise_with_activation(activation):
    inputs, options = [3 * random(1, 4, 5, 3), random(3, 1, 3, 3)], dict(activation=activation)
    check(depthwise, inputs, options)
    with torch.no_grad():
        check(depthwise, inputs, options)


@pytest.mark.parametrize('plus_input', [False, True])
def test_depthwise_inside_autocast(plus_input):
    """A residual stream stays in float32; a map alone has the dtype of autocast."""
    inputs = [random(1, 3, 4, 5), random(5, 1, 3, 3), random(5)]
    found = []
    for form in ('triton', 'torch'):
        with (use_implementation(form, operator='depthwise'),
              torch.autocast(DEVICE, dtype=torch.bfloat16)):
            found.append(results(lambda *ts: depthwise(*ts, plus_input=plus_input), inputs))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=5e-2)


def test_channels_apart_in_memory_are_left_to_torch():
    x, weight = random(1, 3, 4, 4).permute(0, 2, 3, 1), random(3, 1, 3, 3)
    with use_implementation('triton', operator='depthwise'):
        with pytest.raises(ValueError, match='side by side'):
            depthwise(x, weight)
