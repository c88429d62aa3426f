"""Cases of tests/test_triton_forms.py, which runs them in a process of their own: on the GPU where
there is one, else in Triton's interpreter, which has to be chosen before Triton is imported."""
import copy
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad

from visattn_dense.attention import (
    FocusedLinearAttention,
    LiteMLA,
    SelfAttention,
    TokenPerformer,
)
from visattn_dense.attention.naive import as_naive
from visattn_dense.layers import (
    ConvNormAct,
    ConvNorms,
    ConvPair,
    DepthwiseSeparableConv,
    FusedMBConv,
    Handover,
    MBConv,
    Mlp,
    Residual,
    TransformerBlock,
)
from visattn_dense.layers.half_weights import half_weights
from visattn_dense.layers.linear import linear as layers_linear
from visattn_dense.ops import decisions, launching, use_implementation
from visattn_dense.ops.add_norm import add_norm
from visattn_dense.ops.choose import Operator
from visattn_dense.ops.depthwise import depthwise
from visattn_dense.ops.linear import linear, mlp
from visattn_dense.ops.linear_attention import (
    focused_attention,
    performer_attention,
    relu_attention,
)
from visattn_dense.ops.norm_act import Norm, TrainingNorm, norm_act
from visattn_dense.ops.pointwise import grouped_pointwise
from visattn_dense.ops.routing import top_regions
from visattn_dense.ops.sums import sum_rows

from . import race_kernels
from .interpreting import DEVICE, TOLERANCE, Race, forbid_races, poisoned_memory

forbid_races()


@pytest.fixture(autouse=True)
def poisoned():
    """Memory that nothing has written to holds NaN."""
    torch.manual_seed(0)
    with poisoned_memory():
        yield


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


@pytest.mark.skipif(not launching.INTERPRETED, reason='the interpreter alone sees races')
@pytest.mark.parametrize('kernel, fault', [
    (race_kernels.write_twice, 'two programs write'),
    (race_kernels.read_next, 'another one writes')])
def test_a_race_is_an_error(kernel, fault):
    kernel[(1,)](torch.zeros(3))
    with pytest.raises(Race, match=fault):
        kernel[(2,)](torch.zeros(3))


@pytest.mark.parametrize('many', [False, True])
@pytest.mark.parametrize('dtype', launching.DTYPES)
@pytest.mark.parametrize('shape, dim', [
    ((1, 5), 0), ((0, 5), 0), ((7, 33), 0), ((1024, 2, 40), 0), ((3, 130, 200), 1),
    ((1025, 64), 0), ((2, 3001, 3, 11), 1), ((4, 0), 0)])
def test_sum_rows(shape, dim, dtype, many):
    x = inside_nan(random(*shape, dtype=dtype), dims=(0,))
    for other in (None, torch.float32):
        found = sum_rows(x, dim, other, many=many)
        expected = x.double().sum(dim)
        assert found.dtype == (other or dtype) and found.shape == expected.shape
        torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[found.dtype],
                                   atol=TOLERANCE[found.dtype] * max(1, shape[dim]) ** .5)
        torch.testing.assert_close(sum_rows(x, dim, other, many=many), found, rtol=0, atol=0)
    out = torch.empty_like(expected, dtype=torch.float32)
    assert sum_rows(x, dim, many=many, out=out) is out
    torch.testing.assert_close(out, found, rtol=0, atol=0)


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
    options = dict(eps=1e-3, scale=scale, dtype=dtypes[1])
    check(add_norm, [x, update, random(shape[-1]), random(shape[-1])], options, dtype=dtypes[1])
    check(add_norm, [x, update, random(shape[-1]), random(shape[-1]), random(shape[-1])], options,
          dtype=dtypes[1], call=lambda *ts, **more: add_norm(*ts[:4], update_bias=ts[4], **more))


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
    sound(add_norm, random(2, 5, 6), random(2, 5, 6), random(6), random(6), eps=1e-5,
          update_bias=random(6))


@pytest.mark.parametrize('unused', ['total', 'normed'])
def test_one_result_without_a_gradient(unused):
    inputs = [random(2, 3, 5), random(2, 3, 5, dtype=torch.bfloat16), random(5)]
    weight, bias, scale = random(5), random(5), random(2, 1, 1)
    found = []
    for form in ('triton', 'torch'):
        with use_implementation(form, operator='add_norm'):
            found.append(results(
                lambda *ts: add_norm(*ts[:2], weight, bias, eps=1e-5, scale=scale,
                                     update_bias=ts[2])[unused == 'total'], inputs))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_blocks_with_stochastic_depth(training, dtype):
    """Blocks in a row draw the same samples, and their parameters get the same gradients."""
    blocks = torch.nn.ModuleList(
        TransformerBlock(6, torch.nn.Linear(6, 6), drop_path=.5) for _ in range(3))
    blocks.to(DEVICE).train(training)
    found = []
    for form in ('triton', 'torch'):
        torch.manual_seed(3)
        x, handover = random(8, 3, 6).requires_grad_(), Handover()
        out = x
        with use_implementation(form, operator='add_norm'), torch.autocast(
                DEVICE, dtype, enabled=dtype != torch.float32):
            for block, following in zip(blocks, [blocks[1].norm1, blocks[2].norm1, None],
                                        strict=True):
                handover.following = following
                out = block(out, handover)
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *blocks.parameters()])])
    for a, b in zip(*found, strict=True):
        assert (a - b).norm() < TOLERANCE[dtype] * b.norm()


@pytest.mark.parametrize('dtype', launching.DTYPES)
@pytest.mark.parametrize('shape, width', [
    ((5, 7), 3), ((2, 3, 11, 64), 100), ((1, 1), 1), ((2, 1111, 9), 130)])
def test_linear_layers(shape, width, dtype):
    """Gradients of the input, the weights and the biases; numbers that are small enough for halves.
    """
    x, inside = random(*shape, dtype=dtype), shape[-1]
    weight, back = (random(*size, dtype=dtype) / size[1] ** .5 for size in (
        (width, inside), (inside, width)))
    bias, last = random(width, dtype=dtype), random(inside, dtype=dtype)
    check(linear, [x, weight, bias], {})
    # The values between the layers are rounded.
    check(mlp, [x, weight, bias, back, last], {}, slack=2.)
    check(mlp, [x, weight, bias, back, None], {}, slack=2.)
    check(mlp, [x.transpose(0, -2), weight, bias, back, last], {}, slack=2.)


@pytest.mark.parametrize('frozen', ['x', 'first', 'second', 'biases', 'weights'])
def test_frozen_parts_of_a_perceptron(frozen):
    inputs = dict(x=random(3, 5, 4), weight1=random(8, 4), bias1=random(8), weight2=random(6, 8),
                  bias2=random(6))
    cold = dict(x=('x',), first=('x', 'weight1', 'bias1'), second=('weight2', 'bias2'),
                biases=('bias1', 'bias2'), weights=('weight1', 'weight2'))[frozen]
    found = []
    for form in ('triton', 'torch'):
        given = {name: t.clone().requires_grad_(name not in cold) for name, t in inputs.items()}
        with use_implementation(form, operator='mlp'):
            mlp(*given.values()).square().sum().backward()
        assert all((t.grad is None) == (name in cold) for name, t in given.items())
        found.append([t.grad for t in given.values() if t.grad is not None])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('layer', ['linear', 'mlp'])
def test_further_gradients_of_linear_layers(layer):
    """A gradient of the gradient, a batch of gradients, and an input that has changed."""
    inputs = [random(2, 3, 4), random(6, 4), random(6)]
    if layer == 'mlp':
        inputs += [random(5, 6), random(5)]
    operator, found = dict(linear=linear, mlp=mlp)[layer], []
    for form in ('triton', 'torch'):
        given = [t.clone().requires_grad_() for t in inputs]
        with use_implementation(form, operator=layer):
            out = operator(*given)
        torch.manual_seed(2)
        batch = torch.autograd.grad(out, given, random(3, *out.shape), is_grads_batched=True,
                                    retain_graph=True)
        first = torch.autograd.grad(out.sin().sum(), given, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), given)
        found.append([*batch, *first, *second])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
    x = random(3, 4).requires_grad_()
    with use_implementation('triton', operator=layer):
        changed = x * 1
        out = operator(changed, *(t.requires_grad_() for t in inputs[1:]))
    changed.zero_()
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


TRAINED = {
    'perceptron': lambda: (Mlp(8, 16), random(5, 8)),
    'convolution, norm': lambda: (ConvNormAct(8, 6, act='hardswish'), channels_last(2, 8, 5, 3)),
    'convolution, bias': lambda: (ConvNormAct(8, 6, act='gelu_tanh', norm_eps=None),
                                  channels_last(2, 8, 5, 3))}


def as_torch(module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """The module by modules of torch alone."""
    if isinstance(module, Mlp):
        return torch.nn.Sequential(module.fc1, module.act, module.fc2)
    return torch.nn.Sequential(module.conv, module.norm, module.act)


@pytest.mark.parametrize('name', TRAINED)
def test_saved_tensors_in_another_layout(name):
    """As `torch.autograd.graph.save_on_cpu(pin_memory=True)` gives them back."""
    def pack(t: Tensor) -> Tensor:
        return torch.empty(t.shape, dtype=t.dtype, device=t.device).copy_(t)

    module, x = TRAINED[name]()
    module.to(DEVICE)
    expected = outputs_and_gradients(as_torch(copy.deepcopy(module)), x)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        found = outputs_and_gradients(module, x)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1.)


@pytest.mark.parametrize('name', TRAINED)
def test_forward_gradients_and_second_gradients(name):
    module, x = TRAINED[name]()
    module.to(DEVICE)
    found = []
    for each in (module, as_torch(copy.deepcopy(module))):
        torch.manual_seed(3)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, random(*x.shape))
            tangent = forward_ad.unpack_dual(each(dual)).tangent
        x.requires_grad_()
        parameters = [x, *each.parameters()]
        first = torch.autograd.grad(each(x).sin().sum(), parameters, create_graph=True)
        second = torch.autograd.grad(sum(t.square().sum() for t in first), parameters,
                                     allow_unused=True)
        found.append([tangent, *first, *(t for t in second if t is not None)])
    for a, b in zip(*found, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1.)


@pytest.mark.parametrize('name', TRAINED)
def test_tracers_see_modules_of_torch(name):
    module, x = TRAINED[name]()
    module.to(DEVICE)
    torch.testing.assert_close(torch.jit.trace(module.eval(), x)(x), module(x))
    if isinstance(module, Mlp):
        torch.testing.assert_close(torch.fx.symbolic_trace(module)(x), module(x))


def test_one_norm_in_two_layouts():
    """The norm of an NCHW map is torch's, that of the other one is not."""
    layer, x = ConvNormAct(4, 8).to(DEVICE), random(2, 4, 5, 5)
    (layer(x).sum() + layer(x.contiguous(memory_format=torch.channels_last)).sum()).backward()
    assert layer.norm.num_batches_tracked == 2
    with pytest.raises((ValueError, RuntimeError), match='4D'):
        layer(random(4, 8, 5))


def test_the_bias_of_an_update_without_the_norm():
    """Its gradient from the sum alone: on tensors without numbers, and for a batch of gradients."""
    def total(*tensors: Tensor) -> Tensor:
        x, update, bias = tensors
        weight = torch.ones_like(bias)
        return add_norm(x, update, weight, weight, eps=1e-5, update_bias=bias)[0]

    with use_implementation('triton', operator='add_norm'):
        inputs = [random(2, 3, 4), random(2, 3, 4), random(4).requires_grad_()]
        batch = random(5, 2, 3, 4)
        found = torch.autograd.grad(total(*inputs), inputs[2], batch, is_grads_batched=True)[0]
        torch.testing.assert_close(found, batch.sum((1, 2)))
        with FakeTensorMode(allow_non_fake_inputs=True):
            total(*(torch.empty_like(t).requires_grad_() for t in inputs)).sum().backward()


def test_linear_layers_inside_autocast_and_without_gradients():
    layer = torch.nn.Linear(6, 4).to(DEVICE)
    x = random(5, 6)
    with torch.autocast(DEVICE, torch.bfloat16):
        # autocast would cast x and the weight inside the operator, where nothing remembers it.
        assert 'autocast' in linear.forms['triton'].why_not(x, layer.weight, layer.bias)
        out = layers_linear(layer, x)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(torch.autograd.grad(out.float().sum(), layer.bias)[0],
                                   torch.full((4,), 5., device=DEVICE))
    with torch.no_grad():
        assert 'no gradient' in linear.forms['triton'].why_not(x, layer.weight, layer.bias)


class _OwnForward(SelfAttention):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _Adapted(torch.nn.Module):
    def __init__(self, layer: torch.nn.Linear) -> None:
        super().__init__()
        self.layer, self.weight, self.bias = layer, layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + x


class _Halved(Mlp):
    def before_last(self, x: Tensor) -> Tensor:
        return super().before_last(x) / 2


def _loosen(layer: torch.nn.Linear) -> None:
    """As in a replica of nn.DataParallel: the bias is no parameter."""
    bias = layer.bias
    del layer.bias
    layer.bias = bias.detach().requires_grad_()


CHANGES = {
    'nothing': lambda block: None,
    'a bias that is no parameter': lambda block: _loosen(block.attn.proj),
    'another before_last': lambda block: setattr(block.mlp, '__class__', _Halved),
    'a result changed in place': lambda block: block.mlp.register_forward_hook(
        lambda _module, _inputs, out: out.mul_(2)),
    'a hook of the projection': lambda block: block.attn.proj.register_forward_hook(
        lambda _module, _inputs, out: out * 3),
    'a hook of the attention': lambda block: block.attn.register_forward_hook(
        lambda _module, _inputs, out: out * 3),
    'a hook before fc1': lambda block: block.mlp.fc1.register_forward_pre_hook(
        lambda _module, inputs: (inputs[0] * 3,)),
    'a forward set by hand': lambda block: setattr(block.mlp, 'forward', lambda x: x * 3),
    'another projection': lambda block: setattr(block.attn, 'proj', _Adapted(block.attn.proj)),
    'another activation': lambda block: setattr(block.mlp, 'act', torch.nn.ReLU()),
    'no bias': lambda block: setattr(block.mlp.fc2, 'bias', None),
    'a frozen bias': lambda block: block.attn.proj.bias.requires_grad_(False),
    'a subclass': lambda block: setattr(block.attn, '__class__', _OwnForward),
}


@pytest.mark.parametrize('change', CHANGES)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_what_a_user_changes_about_linear_layers_counts(change, dtype):
    """The same results and gradients as by the modules alone, one after another."""
    blocks = torch.nn.ModuleList(TransformerBlock(8, SelfAttention(8, 2, qkv_bias=True))
                                 for _ in range(2)).to(DEVICE)
    for block in blocks:
        for parameter in block.parameters():
            parameter.data = random(*parameter.shape) / 3
        CHANGES[change](block)
    trained = [p for p in blocks.parameters() if p.requires_grad]
    x, found = random(2, 3, 5, 8).requires_grad_(), []
    for by_operators in (True, False):
        with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32), half_weights(blocks, x):
            if by_operators:
                out = blocks[1](blocks[0](x, Handover(blocks[1].norm1)))
            else:
                out = x
                for block in blocks:
                    out = out + block.attn(block.norm1(out))
                    out = out + block.mlp(block.norm2(out))
        found.append([out, *torch.autograd.grad(out.square().sum(), [x, *trained],
                                                allow_unused=True)])
    assert ({'linear', 'mlp'} <= {each.operator for each in decisions() if each.reason is None}
            or change != 'nothing')
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert (a - b).norm() <= TOLERANCE[dtype] * b.norm()


MAPS = {
    # shape, side, options
    '3x3': ((2, 5, 7, 6), 3, {}),
    '5x5, added to a map': ((1, 7, 4, 3), 5, dict(onto=True)),
    '7x7 on a narrow map': ((2, 2, 1, 8), 7, {}),
    'added to its input': ((1, 3, 5, 65), 3, dict(plus_input=True)),
    'stride 2, odd': ((2, 5, 7, 4), 3, dict(stride=2)),
    'stride 2, even': ((1, 6, 8, 3), 5, dict(stride=2)),
    'stride 4': ((2, 9, 7, 3), 5, dict(stride=4)),
    'windows beyond the map': ((2, 5, 7, 3), 5, dict(window=(3, 2), onto=True)),
    'stripes': ((1, 9, 5, 16), 3, dict(window=(9, 2))),
    'stripes of one column': ((2, 3, 5, 8), 3, dict(window=(3, 1))),
    'one window larger than the map': ((1, 3, 6, 5), 5, dict(window=(4, 6))),
    'several tiles': ((1, 27, 16, 8), 3, dict(window=(4, 16))),
}


@pytest.mark.parametrize('case, dtype', [
    *((case, torch.float32) for case in MAPS), ('windows beyond the map', torch.bfloat16),
    ('stride 2, odd', torch.float16)])
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


def test_strides_that_strips_do_not_hold_are_left_to_torch():
    inputs = [random(1, 7, 8, 3), random(3, 1, 3, 3)]
    with use_implementation('triton', operator='depthwise'):
        with pytest.raises(ValueError, match='stride 3'):
            depthwise(*inputs, stride=3)


def test_channels_apart_in_memory_are_left_to_torch():
    x, weight = random(1, 3, 4, 4).permute(0, 2, 3, 1), random(3, 1, 3, 3)
    with use_implementation('triton', operator='depthwise'):
        with pytest.raises(ValueError, match='side by side'):
            depthwise(x, weight)


LINEAR = {
    # What is parametrised: batch, heads, d, tokens.
    'odd': (2, 2, 5, 11),
    'several tiles': (1, 1, 16, 150),
    'wide heads': (1, 1, 64, 40),
    'one token': (1, 3, 3, 1),
}
# The first case in every dtype, the others in float32.
LINEAR_CASES = [('odd', torch.float16), ('odd', torch.bfloat16),
                *((case, torch.float32) for case in LINEAR)]
# Gradients of features are differences of larger terms.
LINEAR_SLACK = 3


@pytest.mark.parametrize('case, dtype', LINEAR_CASES)
@pytest.mark.parametrize('channels_last', [False, True])
def test_relu_attention(case, dtype, channels_last):
    batch, heads, d, tokens = LINEAR[case]
    qkv = random(batch, heads, 3, d, tokens, dtype=dtype)
    if channels_last:
        qkv = inside_nan(qkv.permute(0, 4, 1, 2, 3), dims=(0,)).permute(0, 2, 3, 4, 1)
    # Where no key or no query is positive, the quotient is 0 / ε.
    check(relu_attention, [qkv], dict(epsilon=1e-4), slack=LINEAR_SLACK)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('layouts', ['cc', 'll', 'lc', 'lll'])
def test_relu_attention_of_several_sets(layouts, dtype):
    """Two sets in one layout are one launch; others are computed one after another. c: contiguous;
    l: channels last."""
    sets = []
    for layout in layouts:
        qkv = random(2, 3, 3, 5, 21, dtype=dtype)
        sets.append(qkv if layout == 'c' else
                    inside_nan(qkv.permute(0, 4, 1, 2, 3), dims=(0,)).permute(0, 2, 3, 4, 1))
    check(relu_attention, sets, dict(epsilon=1e-4), slack=LINEAR_SLACK)
    with launching.recorded() as launches, use_implementation('triton'):
        relu_attention(*sets, epsilon=1e-4)
    assert len(launches) == (2 if layouts in ('cc', 'll') else 2 * len(layouts))


@pytest.mark.parametrize('case, dtype', LINEAR_CASES)
def test_performer_attention(case, dtype):
    batch, _, d, tokens = LINEAR[case]
    joint = inside_nan(random(batch, tokens, 3 * d, dtype=dtype) / 2)
    check(performer_attention, [joint], dict(w=random(max(1, d // 2), d), epsilon=1e-8),
          slack=LINEAR_SLACK, call=lambda t, **rest: performer_attention(*t.chunk(3, -1), **rest))


def test_performer_attention_of_tensors_apart():
    inputs = [random(2, 3, 4), random(2, 4, 3).mT, random(2, 3, 4)]
    check(performer_attention, inputs, dict(w=random(3, 4), epsilon=1e-8), slack=LINEAR_SLACK)


FOCUSED = {
    # map, window, heads, d, power
    'whole map': ((2, 5, 6), (5, 6), 2, 3, 3),
    'windows beyond the map': ((2, 4, 3), (3, 2), 2, 5, 3),
    'stripes': ((1, 9, 3), (9, 2), 1, 16, 2),
    'several tiles': ((2, 9, 5), (9, 5), 1, 24, 4),
    'a broken power': ((1, 3, 4), (3, 4), 2, 4, 2.5),
}


@pytest.mark.parametrize('case, dtype', [
    ('stripes', torch.float16), ('stripes', torch.bfloat16),
    *((case, torch.float32) for case in FOCUSED)])
def test_focused_attention(case, dtype):
    """q, k and v are a half of a larger tensor, as in the cross."""
    size, window, heads, d, power = FOCUSED[case]
    channels = heads * d
    qkv = inside_nan(random(*size, 3, channels, dtype=dtype))
    inputs = [qkv, random(1, window[0] * window[1], channels), random(1, 1, channels),
              random(channels, 1, 3, 3), random(channels)]

    def call(qkv, position, scale, kernel, bias, **rest):
        return focused_attention(qkv, window, position=position, scale=scale, kernel=kernel,
                                 bias=bias, **rest)

    check(focused_attention, inputs, dict(num_heads=heads, power=power, epsilon=1e-6), call=call,
          slack=4 * LINEAR_SLACK)


@pytest.mark.parametrize('kind', ['relu', 'performer', 'focused'])
def test_linear_attention_is_sound(kind):
    if kind == 'relu':
        sound(relu_attention, random(1, 2, 3, 4, 9), epsilon=1e-4)
        sound(relu_attention, random(1, 2, 3, 4, 9), random(1, 2, 3, 4, 9), epsilon=1e-4)
    elif kind == 'performer':
        sound(performer_attention, *(random(2, 7, 4) for _ in range(3)), w=random(3, 4),
              epsilon=1e-8)
    else:
        sound(focused_attention, random(1, 2, 3, 3, 4), window=(2, 3), num_heads=2,
              position=random(1, 6, 4), scale=random(1, 1, 4), power=3, epsilon=1e-6,
              kernel=random(4, 1, 3, 3), bias=random(4))


@pytest.mark.parametrize('operator, shape, options', [
    (relu_attention, (0, 2, 3, 4, 5), {}), (performer_attention, (1, 0, 12), {'w': (2, 4)})])
def test_linear_attention_of_nothing_is_left_to_torch(operator, shape, options):
    options = {key: random(*size) for key, size in options.items()}
    inputs = [random(*shape)] if operator is relu_attention else random(*shape).chunk(3, -1)
    with use_implementation('triton', operator=operator.name):
        with pytest.raises(ValueError, match='no tokens'):
            operator(*inputs, epsilon=1e-8, **options)


def channels_last(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(B, C, H, W)."""
    return random(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


ACTIVATIONS = 'none', 'relu', 'hardswish', 'gelu', 'gelu_tanh'
AFTER_CONVOLUTION = [(2, 3, 5, 7), (1, 64, 3, 11), (1, 200, 9, 13), (0, 8, 4, 4)]


@pytest.mark.parametrize('shape', AFTER_CONVOLUTION)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize('parts', ['norm', 'norm without bias', 'norm, sum', 'bias', 'bias, sum',
                                   'nothing'])
def test_norm_and_activation(shape, dtype, activation, parts):
    x, channels = 3 * channels_last(*shape, dtype=dtype), shape[1]
    norm = Norm(random(channels), random(channels).abs(), random(channels), 1e-3)
    norm = norm if parts.startswith('norm') else None
    bias = random(channels) if parts in ('norm', 'bias', 'bias, sum') else None
    onto = channels_last(*shape, dtype=dtype) if 'sum' in parts else None
    with use_implementation('triton', operator='norm_act'):
        found = norm_act(x, bias, norm, activation=activation, onto=onto)
    exact = norm and Norm(*(t.double() for t in norm[:3]), norm.eps)
    expected = norm_act(x.double(), None if bias is None else bias.double(), exact,
                        activation=activation, mode='reference',
                        onto=None if onto is None else onto.double())
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=TOLERANCE[dtype],
                               atol=TOLERANCE[dtype])


@pytest.mark.parametrize('shape', AFTER_CONVOLUTION)
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_gradients_of_bias_and_activation(shape, dtype, activation):
    x = 3 * channels_last(*shape, dtype=dtype)
    if len(x):
        # With a bias of 16 bits, sums would be ±3, where torch 2.6 has other slopes of hardswish.
        check(norm_act, [x, random(shape[1])], dict(activation=activation))
    found = results(lambda x, bias, onto: norm_act(x, bias, activation=activation, onto=onto),
                    [x, random(shape[1], dtype=dtype), channels_last(*shape)])
    assert [t.dtype for t in found] == [torch.float32, dtype, dtype, torch.float32]


def batch_norm(channels: int, momentum: float | None = .1) -> torch.nn.BatchNorm2d:
    """A norm that has seen batches."""
    norm = torch.nn.BatchNorm2d(channels, eps=1e-3, momentum=momentum).to(DEVICE)
    with torch.no_grad():
        for t in (norm.weight, norm.bias, norm.running_mean):
            t.copy_(random(channels))
        norm.running_var.uniform_(.5, 2)
        norm.num_batches_tracked += 4
    return norm


def in_training(norm: torch.nn.BatchNorm2d) -> TrainingNorm:
    return TrainingNorm(norm.running_mean, norm.running_var, norm.weight,
                        norm.num_batches_tracked, norm.momentum, norm.eps)


@pytest.mark.parametrize('shape', [
    (2, 3, 5, 7), (1, 64, 3, 11), (5, 200, 9, 13), (37, 33, 1, 1), (1, 1, 53, 67), (2, 1, 1, 1)])
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('activation, momentum, onto', [
    ('none', .1, True), ('relu', 0., False), ('hardswish', None, True), ('gelu', .1, True),
    ('gelu_tanh', .3, False)])
def test_norm_in_training(shape, dtype, activation, momentum, onto):
    """Against the equation, and against torch's own norm."""
    x = 3 * channels_last(*shape, dtype=dtype)
    maps = [x, channels_last(*shape, dtype=dtype)] if onto else [x]
    norm = batch_norm(shape[1], momentum)
    exact, equation = copy.deepcopy(norm).double(), copy.deepcopy(norm).double()

    def call(form, norm, maps):
        def run(x, weight, bias, onto=None):
            return norm_act(x, bias, in_training(norm)._replace(weight=weight),
                            activation=activation, onto=onto)
        with use_implementation(form, operator='norm_act'):
            found = results(run, [maps[0], norm.weight, norm.bias, *maps[1:]])
        return [*found, norm.running_mean, norm.running_var]

    found = call('triton', norm, maps)
    assert found[0].dtype == found[1].dtype == dtype
    wide = [t.double() for t in maps]
    for form, other in (('torch', exact), ('reference', equation)):
        for i, (a, b) in enumerate(zip(found, call(form, other, wide), strict=True)):
            error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1e-2)
            # The gradient of x is a difference of larger terms.
            assert error < 10 * TOLERANCE[a.dtype], (form, i, float(error))
        assert norm.num_batches_tracked == other.num_batches_tracked == 5


def test_the_variance_of_a_large_mean():
    """The difference of two sums of squares would have no right digit."""
    x = channels_last(3, 5, 41, 37)
    for moved in (x + 1000, x + 1000 * random(1, 5, 1, 1), torch.where(x > 2, x + 1000, x)):
        norm = batch_norm(5, None)
        norm.reset_running_stats()
        exact = copy.deepcopy(norm).double()
        with use_implementation('triton', operator='norm_act'):
            found = norm_act(moved, norm.bias, in_training(norm))
        expected = exact(moved.double())
        # A mean of 1000 in float32 is known to 1e-4.
        torch.testing.assert_close(found.double(), expected, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=1e-6,
                                   atol=1e-4)
        torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=0)


def test_a_norm_in_training_is_sound():
    """The same numbers at every run; autograd sees what changes in place."""
    x = channels_last(3, 40, 31, 29).requires_grad_()
    norm, twin = batch_norm(40), batch_norm(40)
    twin.load_state_dict(norm.state_dict())
    runs = []
    for each in (norm, twin):
        version = each.num_batches_tracked._version
        with use_implementation('triton', operator='norm_act'):
            out = norm_act(x, each.bias, in_training(each), activation='hardswish')
        runs.append([out, *torch.autograd.grad(out.square().sum(), [x, *each.parameters()]),
                     *each.buffers()])
        assert each.num_batches_tracked._version > version
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)

    def forward():
        with use_implementation('triton', operator='norm_act'):
            map = x * 1
            return map, norm_act(map, norm.bias, in_training(norm), activation='relu')

    map, out = forward()
    map.add_(1)
    with pytest.raises(RuntimeError, match='modified by an inplace operation'):
        out.sum().backward()


@pytest.mark.parametrize('activation', ACTIVATIONS)
def test_what_is_no_number_stays_so(activation):
    """A scaler of gradients looks for it."""
    x, bias = channels_last(1, 3, 4, 5), random(3).requires_grad_()
    x[0, 1, 2, 3] = float('nan')
    with use_implementation('triton', operator='norm_act'):
        out = norm_act(x, bias, activation=activation)
        assert out.isnan().sum() == 1
        assert torch.autograd.grad(out.sum(), bias)[0].isnan().sum() == (
            activation in ('hardswish', 'gelu', 'gelu_tanh'))
        assert norm_act(x, bias, in_training(batch_norm(3)), activation=activation
                        )[:, 1].isnan().all()


def test_what_is_left_to_torch_after_a_convolution():
    x, norm = channels_last(1, 5, 3, 4), batch_norm(5)
    running = Norm(norm.running_mean, norm.running_var, norm.weight, norm.eps)
    with use_implementation('triton', operator='norm_act'):
        for match, call in {
            'a gradient of a norm by running': lambda: norm_act(x, norm.bias, running),
            'channels_last': lambda: norm_act(x.mT, random(5)),
            'not float32': lambda: norm_act(x, norm.bias, in_training(
                norm)._replace(weight=norm.weight.half())),
            'vector of the norm': lambda: norm_act(x, None, in_training(norm)),
            'int64': lambda: norm_act(x, norm.bias, in_training(norm)._replace(
                batches=torch.zeros((), device=DEVICE))),
            'two positions': lambda: norm_act(x[:, :, :1, :1], norm.bias, in_training(norm)),
            'torch.func': lambda: torch.vmap(lambda x: norm_act(x, norm.bias, in_training(norm)))(
                x.expand(2, 1, 5, 3, 4)),
        }.items():
            with pytest.raises(ValueError, match=match):
                call()
    with pytest.raises(ValueError, match='more than 1 value'):
        norm_act(x[:, :, :1, :1], norm.bias, in_training(norm))


@pytest.mark.parametrize('shape', [(2, 9, 24), (1, 64, 100), (3, 49, 64), (2, 1, 16), (0, 4, 16)])
@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('count', [1, 4, 16])
def test_top_regions(shape, dtype, count):
    """Half of the channels of a wider tensor are q, and half are k, as in the attention."""
    q, k = inside_nan(random(*shape[:2], 2 * shape[2], dtype=dtype)).chunk(2, -1)
    with use_implementation('triton', operator='top_regions'):
        logits, index = top_regions(q, k, count=count, scale=.3)
    exact, places = top_regions(q.double(), k.double(), count=count, scale=.3, mode='reference')
    assert index.dtype == torch.int64
    torch.testing.assert_close(logits.double(), exact, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert torch.equal(index, places)


def test_vectors_with_gaps_are_left_to_torch():
    x, bias = channels_last(2, 8, 5, 3), random(16)[::2]
    norm = Norm(random(16)[::2], random(16)[::2].square() + 1, random(8), 1e-3)
    for each in (None, norm):
        torch.testing.assert_close(norm_act(x, bias, each, activation='relu'),
                                   norm_act(x, bias, each, activation='relu', mode='reference'))


def test_regions_are_distinct_whatever_the_logits():
    q, k = random(1, 5, 16), random(1, 5, 16)
    q[0, 0], q[0, 1], k[0, 3] = float('nan'), 0, float('inf')
    with use_implementation('triton', operator='top_regions'):
        logits, index = top_regions(q, k, count=5, scale=1.)
        assert logits[0, 0].isnan().all() and logits[0, 2, 0] == logits[0, 2].nan_to_num(-1e9).max()
        assert torch.equal(index.sort(-1).values, torch.arange(5, device=DEVICE).expand(1, 5, 5))
        with pytest.raises(ValueError, match='gradient'):
            top_regions(q.clone().requires_grad_(), k, count=5, scale=1.)
        with pytest.raises(ValueError, match='different shapes'):
            top_regions(q, k[:, :4], count=4, scale=1.)
        with pytest.raises(ValueError, match='more than 256 regions'):
            top_regions(random(1, 289, 8), random(1, 289, 8), count=4, scale=1.)


CONVOLUTIONS = {
    'norm, activation': dict(kernel_size=3, stride=2, act='hardswish'),
    'norm alone': dict(),
    'norm after a bias': dict(bias=True, act='gelu_tanh'),
    'bias, activation': dict(norm_eps=None, act='gelu_tanh'),
    'nothing': dict(norm_eps=None, bias=False),
    'depthwise, norm': dict(kernel_size=3, groups=8, act='hardswish'),
    'depthwise, bias': dict(kernel_size=3, stride=2, groups=8, norm_eps=None, act='hardswish'),
    'depthwise, bias, GELU': dict(kernel_size=5, groups=8, norm_eps=None, act='gelu_tanh'),
}


BRANCHES = {
    'mobile': partial(MBConv, 8, 8), 'mobile, biases': partial(MBConv, 8, 8, inner_norm=False),
    'fused': partial(FusedMBConv, 8, 8), 'pair': partial(ConvPair, 8, 8),
    'separable': partial(DepthwiseSeparableConv, 8, 8),
    'attention': partial(LiteMLA, 8, 1, head_dim=8)}


@pytest.mark.parametrize('name', BRANCHES)
@pytest.mark.parametrize('autocast', [False, True])
def test_the_last_layer_of_a_branch_adds_the_shortcut(name, autocast):
    """For inference, and where nothing watches what the branch returns."""
    block = Residual(BRANCHES[name](), drop_path=.5).to(DEVICE).eval()
    x = random(2, 8, 7, 9).contiguous(memory_format=torch.channels_last)
    seen = []
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        with launching.recorded() as launches:
            block(x)
        assert any(launch.kernel.__name__ == 'norm_act_kernel' and launch.args[5] is not None
                   for launch in launches)
        found = block(x)
        for part in (block.main, block.main.last()):
            with part.register_forward_hook(lambda module, args, out: seen.append(out)):
                expected = block(x)
            torch.testing.assert_close(x + seen[-1], expected)
    tolerance = TOLERANCE[torch.bfloat16 if autocast else torch.float32]
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('training', [True, False])
def test_convolutions_and_norms_in_order(training):
    """The stem of BiFormer, from an image that is NCHW in memory; then a norm first."""
    nn = torch.nn
    for layers in ([nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.GELU(),
                    nn.Conv2d(4, 8, 3, 2, 1), nn.BatchNorm2d(8)],
                   [nn.BatchNorm2d(3), nn.Conv2d(3, 8, 2, 2)]):
        plain = nn.Sequential(*layers).to(DEVICE).train(training)
        ours = ConvNorms(*copy.deepcopy(layers)).to(DEVICE).train(training)
        assert ours.state_dict().keys() == plain.state_dict().keys()
        x, found = random(2, 3, 9, 14), []
        for block in (ours, plain):
            with torch.set_grad_enabled(training):
                out = block(x)
            grads = torch.autograd.grad(out.square().sum(), list(block.parameters())) if (
                training) else ()
            found.append([out, *grads, *(t for t in block.buffers())])
        for a, b in zip(*found, strict=True):
            # The gradient of a bias before a norm is 0.
            assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=10.)


@pytest.mark.parametrize('name', BRANCHES)
def test_the_shortcut_of_a_branch_in_training(name):
    """The last layer adds it where nothing is dropped."""
    x = channels_last(2, 8, 7, 9)

    def adds(block):
        with launching.recorded() as launches:
            copy.deepcopy(block)(x)
        return any(launch.kernel.__name__ == 'norm_act_kernel' and launch.args[5] is not None
                   for launch in launches)

    block = Residual(BRANCHES[name]()).to(DEVICE)
    twin, seen = copy.deepcopy(block), []
    twin.main.register_forward_hook(lambda *_: seen.append(1))
    assert adds(block) and not adds(twin) and not adds(Residual(block.main, drop_path=.5).train())
    seen.clear()
    found, expected = (outputs_and_gradients(each, x) for each in (block, twin))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max().clamp(min=1.)
    assert seen


def outputs_and_gradients(module: torch.nn.Module, x: Tensor) -> list[Tensor]:
    """The result, and the gradients of x and of the parameters."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = module(x)
    return [out, *torch.autograd.grad(out.sin().sum(), [x, *module.parameters()])]


def test_what_a_user_changes_about_a_shortcut_counts():
    class Scaled(Residual):
        def add(self, x: Tensor, update: Tensor) -> Tensor:
            return x + 0 * update

    class Doubled(MBConv):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    x = random(2, 8, 7, 9)
    hooked, replaced = Residual(MBConv(8, 8)), Residual(MBConv(8, 8))
    hooked.drop_path.register_forward_pre_hook(lambda module, args: (0 * args[0],))
    replaced.drop_path = torch.nn.Threshold(float('inf'), 0.)
    doubled = Residual(Doubled(8, 8)).to(DEVICE).eval()
    with torch.no_grad():
        for block in (hooked, replaced, Scaled(MBConv(8, 8))):
            torch.testing.assert_close(block.to(DEVICE).eval()(x), x)
        torch.testing.assert_close(doubled(x), x + doubled.main(x))


@pytest.mark.parametrize('name', CONVOLUTIONS)
@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('training', [False, True])
def test_convolution_norm_activation(name, autocast, training):
    """The same values as by the modules one after the other, which a hook on one of them forces."""
    layer = ConvNormAct(8, 8, **CONVOLUTIONS[name]).to(DEVICE).train(training)
    if type(layer.norm) is torch.nn.BatchNorm2d:
        layer.norm = batch_norm(8)
        layer.train(training)
    twin = copy.deepcopy(layer)
    x = channels_last(2, 8, 7, 9)
    called = []

    def run(layer):
        if training:
            return [*results(lambda x, *_: layer(x), [x]), *layer.buffers()]
        return [layer(x)]

    with torch.set_grad_enabled(training), torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
        with launching.recorded() as launches:
            copy.deepcopy(layer)(x)
        names = {launch.kernel.__name__ for launch in launches}
        assert ('norm_act_kernel' in names) != ('nothing' in name or 'depthwise, bias' == name
                                                or (training and 'depthwise, bias' in name))
        assert ('batch_statistics_kernel' in names) == (training and 'norm' in name)
        found = run(layer)
        for part in ('conv', 'norm', 'act'):
            other = copy.deepcopy(twin)
            getattr(other, part).register_forward_hook(lambda *_: called.append(1))
            expected = run(other)
            tolerance = TOLERANCE[torch.bfloat16 if autocast else torch.float32]
            for a, b in zip(found, expected, strict=True):
                assert a.dtype == b.dtype
                assert (a - b).abs().max() <= 3 * tolerance * b.abs().max()
    assert len(called) == 3
    assert layer(x).requires_grad


def test_torch_trains_what_the_kernels_do_not():
    """Each with the results of torch's modules."""
    x = channels_last(2, 8, 7, 9)

    def unlike(change):
        layer = ConvNormAct(8, 8, act='hardswish').to(DEVICE)
        change(layer)
        twin = copy.deepcopy(layer)
        with launching.recorded() as launches:
            copy.deepcopy(layer)(x)
        assert not [each for each in launches if each.kernel.__name__ == 'batch_statistics_kernel']
        torch.testing.assert_close(layer(x), twin.act(twin.norm(twin.conv(x))))
        for a, b in zip(layer.buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(a, b)

    unlike(lambda layer: layer.norm.eval())
    unlike(lambda layer: setattr(layer.norm, 'track_running_stats', False))
    unlike(lambda layer: setattr(layer, 'norm', torch.nn.BatchNorm2d(8, affine=False).to(DEVICE)))
    unlike(lambda layer: setattr(layer, 'norm', torch.nn.BatchNorm2d(
        8, track_running_stats=False).to(DEVICE)))


@pytest.mark.parametrize('kwargs', [{}, dict(norm_eps=None)])
def test_transforms_and_batched_gradients_of_a_training_layer(kwargs):
    """By torch's own operators, or with the right numbers."""
    layer = ConvNormAct(3, 4, act='hardswish', **kwargs).to(DEVICE)
    x = channels_last(2, 3, 5, 4)
    parameters = dict(layer.named_parameters())

    def loss(parameters, x):
        # The norm may change the statistics in place, if they are not those of the module.
        buffers = {key: value.clone() for key, value in layer.named_buffers()}
        return torch.func.functional_call(layer, parameters | buffers, (x,)).square().sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    found = torch.func.grad(loss)({key: value.detach() for key, value in parameters.items()}, x)
    for a, b in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    out = layer(x)
    rows = torch.stack([random(*out.shape) for _ in range(3)])
    singly = [torch.autograd.grad(out, layer.conv.weight, row, retain_graph=True)[0]
              for row in rows]
    together, = torch.autograd.grad(out, layer.conv.weight, rows, is_grads_batched=True)
    torch.testing.assert_close(together, torch.stack(singly), rtol=1e-4, atol=1e-4)


def test_a_layer_in_training_under_a_profiler():
    layer, x = ConvNormAct(3, 4, act='hardswish').to(DEVICE), channels_last(2, 3, 5, 4)
    twin = copy.deepcopy(layer)
    expected = layer(x)
    with torch.profiler.profile() as seen:
        found = twin(x)
        found.sum().backward()
    assert torch.equal(found, expected)
    assert {'visattn::norm_act_triton', 'visattn::norm_act_triton_backward'} <= {
        event.name for event in seen.events()}


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('positions, groups, inside, outside', [
    ((2, 3, 5), 3, 5, 7), ((1, 9, 9), 2, 33, 16), ((1, 1, 1), 1, 1, 1)])
def test_grouped_pointwise(dtype, positions, groups, inside, outside):
    inputs = [inside_nan(random(*positions, groups * inside, dtype=dtype)),
              random(groups * outside, inside, 1, 1, dtype=dtype)]
    check(grouped_pointwise, inputs, dict(groups=groups))


def test_grouped_pointwise_is_sound():
    sound(grouped_pointwise, random(1, 5, 3, 8), random(6, 4, 1, 1), groups=2)


@pytest.mark.parametrize('positions', [(1, 3, 4), (0, 3, 4)])
def test_grouped_pointwise_inside_autocast(positions):
    """As the convolution: rounds the input and the weights to autocast's dtype."""
    inputs, found = [random(*positions, 6), random(4, 3, 1, 1)], []
    for form in ('triton', 'torch'):
        with (use_implementation(form, operator='grouped_pointwise'),
              torch.autocast(DEVICE, dtype=torch.bfloat16)):
            found.append(results(lambda *ts: grouped_pointwise(*ts, groups=2), inputs))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


MODULES = {
    'LiteMLA': (lambda: LiteMLA(6, 2, head_dim=5, scales=(3,), eps=1e-4), (2, 6, 5, 3)),
    'focused stripes': (lambda: FocusedLinearAttention(
        8, 2, native_size=(4, 4), stripe_width=2, kernel_size=3), (1, 5, 3, 8)),
    'performer tokens': (lambda: TokenPerformer(7, 4, dropout=0.), (2, 3, 5, 7)),
}


@pytest.mark.parametrize('autocast', [False, True])
@pytest.mark.parametrize('name', MODULES)
def test_module_is_its_equation(name, autocast):
    build, shape = MODULES[name]
    # A BatchNorm that trains has no gradient along its input: rounding alone would be compared.
    fast = build().to(DEVICE).eval()
    slow = as_naive(build().to(DEVICE).eval())
    with torch.no_grad():
        for parameter in fast.parameters():
            parameter.copy_(random(*parameter.shape) / 2)
    slow.load_state_dict(fast.state_dict())
    x = random(*shape)
    x = x.contiguous(memory_format=torch.channels_last) if name == 'LiteMLA' else x
    found = []
    for module, form in ((fast, 'triton'), (slow, 'torch')):
        with (use_implementation(form),
              torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=autocast and form == 'triton')):
            out = module(x)
        grads = torch.autograd.grad(out.float().square().sum(), list(module.parameters()))
        found.append([out.float(), *grads])
    for a, b in zip(*found, strict=True):
        error = (a - b).abs().max() / b.abs().max().clamp(min=1e-6)
        assert error < (6e-2 if autocast else 2e-5), float(error)
