"""The compiled kernels beside the equations, on every kind of processor that this one can act."""
import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from visattn_dense.attention import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    LePESelfAttention,
    LiteMLA,
    SelfAttention,
)
from visattn_dense.attention.naive import as_naive
from visattn_dense.layers import (
    DepthwiseConv,
    FusedMBConv,
    GroupedPointwiseConv,
    MBConv,
    Mlp,
    Residual,
    TransformerBlock,
    optimize_for_inference,
)
from visattn_dense.layers.norm import LayerNorm2d, PreNorm
from visattn_dense.layers.packed import NativeGroupedConv, NativeNorm, NativeTransposedConv
from visattn_dense.ops import native
from visattn_dense.ops.group_attention.rows import region_groups, window_groups
from visattn_dense.ops.linear_attention import focused_attention
from visattn_dense.ops.native import build
from visattn_dense.ops.native import layers as native_layers

from .tiny_backbones import BACKBONES

compiler = shutil.which(os.environ.get('CXX', 'g++'))
pytestmark = pytest.mark.skipif(compiler is None, reason='no C++ compiler')

# What the fixtures put others in the place of.
TILES, LIBRARY = build.tiles, build.library
# The products of bfloat16 of these processors take weights of the softmax in bfloat16 too.
ROUNDS_WEIGHTS = TILES() or 'avx512_bf16' in build.processor()
# Tiles, and vectors of 16, 8 and 4 floats, where the processor has them.
PROCESSORS = ['native', *(['native, vectors'] if build.tiles() else []),
              *(['x86-64-v3', 'x86-64'] if os.uname().machine == 'x86_64' else [])]


@pytest.fixture(scope='module', params=PROCESSORS)
def kernels(request, tmp_path_factory):
    """The operators with kernels compiled for a kind of processor."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, 'tiles', lambda: request.param == 'native' and TILES())
        patch.setattr(native_layers, '_LEAST_IN_TILES', 0)
        if request.param.startswith('x86'):
            flags = [f for f in build.FLAGS if not f.startswith('-march')]
            patch.setattr(build, 'FLAGS', [*flags, f'-march={request.param}'])
            path = build._compile(build._compiler(), tmp_path_factory.mktemp(request.param))
            found = build._open(path)
            patch.setattr(build, 'library', lambda: found)
        yield


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(q: Tensor, k: Tensor, v: Tensor, heads: int, scale: float, zeros: int = 0) -> Tensor:
    """softmax(q kᵀ · scale) v of (n, C) in float64, `zeros` keys and values of zero beside k."""
    q, k, v = (t.double().unflatten(-1, (heads, -1)).transpose(0, 1) for t in (q, k, v))
    k, v = (F.pad(t, (0, 0, 0, zeros)) for t in (k, v))
    return ((q @ k.mT * scale).softmax(-1) @ v).transpose(0, 1).flatten(1)


@pytest.mark.parametrize('tokens', [1, 3, 16, 33, 197])
@pytest.mark.parametrize(('heads', 'dim', 'width'),
                         [(1, 32, 32), (3, 7, 5), (2, 20, 64), (2, 1, 1)])
def test_attention_of_all_tokens(kernels, tokens, heads, dim, width):
    q, k = random(2, 2, tokens, heads * dim)
    v = random(2, tokens, heads * width, seed=1)
    groups, _ = window_groups(2, tokens, 1, (tokens, 1), False)
    out = torch.full((2, tokens, heads * width), float('nan'))
    native.attend(q, k, v, out, groups, heads=heads, scale=-.7)
    for i in range(2):
        torch.testing.assert_close(out[i].double(), reference(q[i], k[i], v[i], heads, -.7),
                                   rtol=1e-5, atol=5e-6)


def test_routed_attention_to_regions_of_different_sizes(kernels):
    q, k, v = (random(7, 8, seed=i).bfloat16() for i in range(3))
    rows, starts = torch.arange(7, dtype=torch.int32), torch.tensor([0, 4, 7], dtype=torch.int32)
    out = torch.empty_like(v)
    native.attend(q, k, v, out, native.Groups(rows, starts, rows, starts, None), heads=2, scale=1.,
                  routed=torch.tensor([[1, 0], [0, 1]]))
    torch.testing.assert_close(out.double(), reference(q, k, v, 2, 1.), rtol=2**-7, atol=2**-8)


def test_attention_of_more_tokens_than_the_kernel_takes_at_once(kernels):
    q, k, v = random(3, 8, 1050, 5)
    groups, _ = window_groups(8, 1050, 1, (1050, 1), False)
    out = torch.full_like(v, float('nan'))
    native.attend(q * 2, k, v, out, groups, heads=1, scale=1.)
    for i in range(8):
        torch.testing.assert_close(out[i].double(), reference(q[i] * 2, k[i], v[i], 1, 1.),
                                   rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize('zero_keys', [False, True])
@pytest.mark.parametrize('size', [(5, 7), (6, 9), (1, 1), (13, 4), (5, 90)])
@pytest.mark.parametrize('window', [(4, None), (None, 4), (3, 2)])
def test_attention_in_windows_of_a_padded_map(kernels, size, window, zero_keys):
    height, width = size
    window = window[0] or height, window[1] or width
    qkv = random(2, height, width, 3, 2 * 2 * 6)[..., 12:]      # a part of a wider tensor
    q, k, v = qkv.unbind(3)
    groups, (top, left) = window_groups(2, height, width, window, zero_keys)
    out = torch.zeros(2, height, width, 24)[..., 6:18]
    native.attend(q, k, v, out, groups, heads=2, scale=.5)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    number = (y + top) // window[0] * 1000 + (x + left) // window[1]
    for which in number.unique():
        at = number == which
        zeros = window[0] * window[1] - int(at.sum()) if zero_keys else 0
        for i in range(2):
            expected = reference(q[i][at], k[i][at], v[i][at], 2, .5, zeros)
            torch.testing.assert_close(out[i][at].double(), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('width', [12, 9])                          # an odd number of tokens, too
def test_routed_attention(kernels, width, dtype):
    heads, n_win, tokens = 3, 3, width
    q, k, v = (random(2, 9, width, heads * 10, seed=i).to(dtype) for i in range(3))
    routed = torch.stack([torch.randperm(9)[:4] for _ in range(18)])
    routed[3] = 5                                                   # one region four times
    routed += torch.arange(18)[:, None] // 9 * 9
    out = torch.empty_like(v)
    native.attend(q, k, v, out, region_groups(2, 9, width, n_win), heads=heads, scale=.3,
                  routed=routed)

    def regions(t: Tensor) -> Tensor:
        t = t.unflatten(2, (n_win, -1)).unflatten(1, (n_win, 3))
        return t.transpose(2, 3).reshape(18, tokens, -1)
    for r in range(18):
        keys, values = (regions(t)[routed[r]].flatten(0, 1) for t in (k, v))
        expected = reference(regions(q)[r], keys, values, heads, .3)
        rtol, atol = (1e-5, 5e-6) if dtype == torch.float32 else (2**-7, 2**-8)
        torch.testing.assert_close(regions(out)[r].double(), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(('tokens', 'keys'), [(1, 1), (16, 130), (600, 33), (70, 900)])
def test_attention_in_bfloat16(kernels, tokens, keys):
    q, k, v = (random(n, 2 * 48, seed=n).bfloat16() for n in (tokens, keys, keys + 1))
    v = v[:keys]
    rows = [torch.arange(n, dtype=torch.int32) for n in (tokens, keys)]
    starts = [torch.tensor([0, n], dtype=torch.int32) for n in (tokens, keys)]
    groups = native.Groups(rows[0], starts[0], rows[1], starts[1], torch.tensor([3.]))
    out = torch.full_like(q, float('nan'))
    native.attend(q, k, v, out, groups, heads=2, scale=.4)
    expected = reference(q.float(), k.float(), v.float(), 2, .4, 3)
    error = (out.double() - expected).abs() / expected.abs().clamp(min=.5)
    assert error.max() < 2**-7


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_attention_to_absent_keys_alone_is_zero(kernels, dtype):
    q, k, v = random(3, 80, 32).to(dtype)
    rows = torch.arange(80, dtype=torch.int32)
    starts = torch.tensor([0, 40, 80], dtype=torch.int32)
    groups = native.Groups(rows, starts, rows[:40], starts.clamp(max=40), torch.tensor([0., 3.]))
    out = torch.full_like(q, float('nan'))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)                     # one thread computes both groups
    try:
        native.attend(q, k, v, out, groups, heads=1, scale=1.)
    finally:
        torch.set_num_threads(threads)
    assert out[:40].ne(0).all() and out[40:].eq(0).all()


@pytest.mark.parametrize('rows', [3, 1000])
def test_any_number_of_threads_gives_the_same(kernels, rows):
    x = random(rows, 24)
    layers = [native.Layer.of(random(*shape), random(shape[0])) for shape in ((48, 24), (24, 48))]
    q, k, v = random(3, 1, rows, 24)
    groups, _ = window_groups(1, rows, 1, (10, 1), True)
    results, before = [], torch.get_num_threads()
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        try:
            out = torch.full_like(v, float('nan'))
            native.attend(q, k, v, out, groups, heads=2, scale=1.)
            results.append((out, native.linear(x, layers[0], activation='relu'),
                            native.chain(x, *layers, activation='gelu', epsilon=.1)))
        finally:
            torch.set_num_threads(before)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('tokens', [40, 600])
def test_attention_survives_large_logits_and_shows_nans(kernels, tokens, dtype):
    q, k, v = random(3, 1, tokens, 8).to(dtype)
    groups, _ = window_groups(1, tokens, 1, (tokens, 1), False)
    out = torch.empty_like(v)
    native.attend(q * 1e4, k, v, out, groups, heads=1, scale=1.)
    expected = reference(q[0] * 1e4, k[0], v[0], 1, 1.)
    torch.testing.assert_close(out[0].to(expected), expected, rtol=torch.finfo(dtype).eps * 10,
                               atol=1e-5)
    k[0, 7] = float('nan')
    native.attend(q, k, v, out, groups, heads=1, scale=1.)
    assert out.isnan().all()


def relu_reference(qkv: Tensor, epsilon: float) -> Tensor:
    """Attention of ReLU features of (B, N, h, 3, d) in float64."""
    q, k, v = qkv.double().transpose(1, 2).unbind(3)
    weights = q.relu() @ k.relu().mT
    return (weights / (weights.sum(-1, keepdim=True) + epsilon) @ v).transpose(1, 2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(('n_win', 'side', 'channels'), [(1, 5, 3), (4, 2, 32), (3, 7, 100)])
def test_routing(kernels, n_win, side, channels, dtype):
    """Means beside those of float64; the regions beside torch's choice among the same means."""
    x = random(2, n_win * side, n_win * side, 3 * channels).to(dtype)[..., channels:]
    means = native.region_means(x, n_win)
    exact = x.double().unflatten(2, (n_win, side)).unflatten(1, (n_win, side)).mean((2, 4))
    torch.testing.assert_close(means, exact.flatten(1, 2).to(dtype), rtol=1e-5, atol=1e-6)
    q, k = means.chunk(2, -1)
    for count in {1, min(5, n_win**2), n_win**2}:
        logits, index = native.top_regions(q, k, count=count, scale=-1.5)
        every = q.double() @ k.double().mT * -1.5
        true, chosen = every.topk(count)
        assert index.equal(chosen)
        torch.testing.assert_close(logits.double(), true, rtol=1e-2 if dtype != torch.float32
                                   else 1e-5, atol=1e-5)


def test_routing_of_equal_regions_and_of_nans(kernels):
    """Of equal regions the first; NaN before all numbers; never a region beyond the map."""
    q, k = torch.ones(1, 20, 4), torch.ones(1, 20, 4)
    assert native.top_regions(q, k, count=3, scale=1.)[1][0].tolist() == [[0, 1, 2]] * 20
    k[0, 7], k[0, 11], q[0, 5] = torch.nan, torch.inf, -1.
    logits, index = native.top_regions(q, k, count=3, scale=1.)
    assert index[0, 0].tolist() == [7, 11, 0] and index[0, 5].tolist() == [7, 0, 1]
    assert logits[0, 0].isnan().tolist() == [True, False, False]
    every = native.top_regions(q, torch.full_like(k, torch.nan), count=20, scale=1.)[1]
    assert every[0, 0].tolist() == list(range(20))


# The kernel takes 64 tokens at a time, and 256 or more for each of its sums.
@pytest.mark.parametrize('tokens', [1, 31, 64, 257, 1031])
@pytest.mark.parametrize(('heads', 'dim'), [(1, 32), (3, 7), (2, 16), (2, 45), (5, 1)])
def test_attention_of_relu_features(kernels, tokens, heads, dim):
    qkv = random(2, tokens, heads, 3, dim + 2)[..., 1:-1]         # rows at a distance
    qkv[0, 0] = -1.                                              # a query without a key
    out = native.relu_attention(qkv, epsilon=1e-15)
    assert out[0, 0].eq(0).all()
    torch.testing.assert_close(out.double(), relu_reference(qkv, 1e-15), rtol=1e-5, atol=5e-6)
    exact = native.relu_attention(qkv.bfloat16().float(), epsilon=.1)
    torch.testing.assert_close(exact.double(), relu_reference(qkv.bfloat16(), .1), rtol=1e-5,
                               atol=5e-6)
    near(native.relu_attention(qkv.bfloat16(), epsilon=.1), exact)


def test_attention_of_relu_features_of_many_tokens(kernels):
    qkv = random(1, 20_011, 1, 3, 5)                             # more than 64 · 256
    torch.testing.assert_close(native.relu_attention(qkv, epsilon=1.).double(),
                               relu_reference(qkv, 1.), rtol=1e-5, atol=5e-6)


def test_attention_of_relu_features_shows_nans_and_knows_no_threads(kernels):
    qkv = random(3, 600, 3, 3, 20)
    threads, results = torch.get_num_threads(), []
    try:
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            results.append(native.relu_attention(qkv, epsilon=1e-6))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)
    for which, lost in ((0, (1, 300, 2)), (1, (1, slice(None), 2)), (2, (1, slice(None), 2, 7))):
        part = qkv.clone()
        part[1, 300, 2, which, 7] = float('nan')
        out = native.relu_attention(part, epsilon=1e-6)
        found = torch.zeros_like(out, dtype=torch.bool)
        found[lost] = True
        assert torch.equal(out.isnan(), found)


@pytest.mark.parametrize('kernel', [3, 5])
@pytest.mark.parametrize('size', [(1, 1), (4, 9), (11, 6)])
@pytest.mark.parametrize('channels', [1, 16, 37])
def test_depthwise_convolution(kernels, kernel, size, channels):
    conv = torch.nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
    weight = conv.weight.detach().flatten(1).t().contiguous()
    x = random(2, *size, 2 * channels)[..., :channels]
    before = random(2, *size, channels, seed=1)
    with torch.no_grad():
        expected = conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    for activation, act in (('none', lambda t: t), ('relu', F.relu),
                            ('hardswish', F.hardswish)):
        for accumulate in (False, True):
            out = before.clone()
            native.depthwise(x, out, weight, conv.bias.detach(), accumulate=accumulate,
                             activation=activation)
            torch.testing.assert_close(out, act(before + expected if accumulate else expected),
                                       rtol=1e-5, atol=1e-5)


def test_depthwise_convolution_sees_nothing_beyond_its_window(kernels):
    x, weight = random(1, 7, 8, 5), random(9, 5, seed=1)
    out = torch.empty_like(x)
    # Windows of 3×4 that begin one row and two columns before the map.
    native.depthwise(x, out, weight, None, window=(3, 4), corner=(1, 2))
    kernel = weight.t().reshape(5, 1, 3, 3)
    for rows in ((0, 2), (2, 5), (5, 7)):
        for columns in ((0, 2), (2, 6), (6, 8)):
            part = (slice(None), slice(*rows), slice(*columns))
            expected = F.conv2d(x[part].permute(0, 3, 1, 2), kernel, padding=1, groups=5)
            torch.testing.assert_close(out[part], expected.permute(0, 2, 3, 1), rtol=1e-5,
                                       atol=1e-5)
    with pytest.raises(RuntimeError, match='7x7'):
        native.depthwise(x, out, random(49, 5), None)


def near(actual: Tensor, exact: Tensor, atol: float = 1e-6) -> None:
    """Equal to the float32 result, rounded to bfloat16 once: a last bit may differ."""
    assert actual.dtype == torch.bfloat16
    torch.testing.assert_close(actual.float(), exact.bfloat16().float(), rtol=2**-7, atol=atol)


@pytest.mark.parametrize('dim', [5, 16, 20, 33])
def test_maps_in_bfloat16(kernels, dim):
    heads, size = 2, (7, 9)
    qkv = random(2, *size, 3, heads * dim).bfloat16()
    q, k, v = qkv.unbind(3)
    exact = qkv.float().unbind(3)
    groups, corner = window_groups(2, *size, (7, 4), True)

    def results(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        outs = [torch.empty_like(v, memory_format=torch.contiguous_format) for _ in range(2)]
        native.attend(q, k, v, outs[0], groups, heads=heads, scale=.4)
        native.depthwise(v, outs[1], random(9, heads * dim, seed=2), random(heads * dim, seed=3),
                         window=(7, 4), corner=corner, activation='hardswish')
        return outs

    (attended, convolved), (exact_attended, exact_convolved) = results(q, k, v), results(*exact)
    near(attended, exact_attended, 2**-8 if ROUNDS_WEIGHTS else 1e-6)
    near(convolved, exact_convolved)
    # Added to what is there: the sum is in float32, and rounded once.
    before = random(2, *size, heads * dim, seed=4).bfloat16()
    exact_sum = before.float()
    for out, x in ((before, v), (exact_sum, exact[2])):
        native.depthwise(x, out, random(25, heads * dim, seed=5), None, accumulate=True)
    near(before, exact_sum)


def test_bfloat16_is_rounded_to_the_nearest(kernels):
    # A convolution with one tap of 1 and a bias: out = round(0 + bias), as torch rounds.
    numbers = torch.tensor([1.00390625, 1.01171875, 1.0039063, -1.00390625, 3.3e38, -3.4e38, 1e-40,
                            float('inf'), float('-inf'), float('nan'), 0., -0., 65280.5, 1.5,
                            -7.6e-6, 2**-133, 9.3e-41])
    x = torch.zeros(1, 1, 1, len(numbers), dtype=torch.bfloat16)
    weight, out = torch.zeros(9, len(numbers)), torch.empty_like(x)
    native.depthwise(x, out, weight, numbers)
    assert torch.equal(out.flatten().nan_to_num(7), numbers.bfloat16().nan_to_num(7))
    assert out.flatten().isnan().tolist() == numbers.isnan().tolist()


ACTIVATIONS = {
    'none': lambda y: y, 'relu': F.relu, 'hardswish': F.hardswish, 'gelu': F.gelu,
    'gelu_tanh': lambda y: F.gelu(y, approximate='tanh'),
}


@pytest.mark.skipif(not native.available(), reason='no compiled kernels')
def test_whoever_watches_sees_the_operators():
    class Names(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    seen, x, layer = [], random(3, 4), native.Layer.of(random(2, 4), None)
    with torch.inference_mode():
        plain = native.linear(x, layer)
        with Names():
            watched = native.linear(x, layer)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            native.linear(x, layer)
    torch.testing.assert_close(watched, plain, rtol=0, atol=0)
    assert 'visattn.linear.default' in seen
    assert 'visattn::linear' in {event.key for event in profile.key_averages()}
    # A gradient that the kernels do not have is an error, and not a result without a gradient.
    with pytest.raises(RuntimeError):
        native.linear(x.requires_grad_(), layer).sum().backward()


@pytest.mark.parametrize('activation', ACTIVATIONS)
@pytest.mark.parametrize(('rows', 'inputs', 'outputs'), [
    (1, 1, 1), (7, 3, 5), (130, 24, 48), (257, 130, 17), (300, 512, 260), (5, 1536, 33)])
def test_linear_layers(kernels, activation, rows, inputs, outputs):
    act = ACTIVATIONS[activation]
    wide = random(2, rows, inputs + 3)
    x, update = wide[..., 1:-2], random(2, rows, inputs, seed=1)
    weight, back = random(outputs, inputs) / inputs**.5, random(inputs, outputs) / outputs**.5
    bias, last = random(outputs, seed=2), random(inputs, seed=3)
    addend = random(2, rows, outputs, seed=4)
    first, second = native.Layer.of(weight, bias), native.Layer.of(back, last)

    def exact(t: Tensor, addend: Tensor | float = 0.) -> Tensor:
        return act(F.linear(t.double(), weight.double(), bias.double()) + addend)

    def after(t: Tensor) -> Tensor:
        return F.linear(t, back.double(), last.double())

    def near(out: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=2e-5)

    near(native.linear(x, first, activation=activation), exact(x))
    near(native.linear(x, first, activation=activation, addend=addend), exact(x, addend))
    near(native.linear(x, native.Layer.of(weight, None)), x.double() @ weight.double().T)
    near(native.chain(x, first, second, activation=activation), after(exact(x)))
    near(native.chain(x, first, second, activation=activation, addend=update),
         after(exact(x)) + update)
    for more in (update, None):
        total = x.double() if more is None else x.double() + more
        normed = F.layer_norm(total, (inputs,), eps=1e-3)
        total = total + after(exact(normed))
        near(native.chain(x, first, second, activation=activation, update=more, epsilon=1e-3),
             total)
        out, normed = native.chain(x, first, second, activation=activation, update=more,
                                   epsilon=1e-3, following=(last, last + 1, .1))
        near(out, total)
        near(normed, F.layer_norm(total, (inputs,), last.double(), last.double() + 1, eps=.1))


@pytest.mark.parametrize(('channels', 'outputs', 'kernel', 'stride', 'padding', 'size'), [
    (3, 20, 7, 4, 2, (30, 37)), (8, 40, 3, 1, 1, (9, 5)), (17, 24, 3, 2, 1, (8, 8)),
    (5, 96, 3, 1, 1, (1, 1)), (12, 7, 1, 2, 0, (6, 7)), (200, 9, 3, 2, 1, (5, 4)),
    (32, 64, 3, 1, 1, (12, 11)), (160, 80, 3, 1, 1, (9, 8)), (600, 20, 3, 1, 1, (3, 4)),
    # Lines of many rows, which need no copies of the patches.
    (16, 40, 3, 2, 1, (9, 30)), (20, 24, 5, 1, 2, (5, 29)), (17, 33, 4, 3, 1, (14, 50)),
    (16, 70, 2, 2, 0, (9, 41)), (18, 20, 3, 1, 0, (7, 22))])
def test_convolutions_as_linear_layers(kernels, channels, outputs, kernel, stride, padding, size):
    x = random(2, *size, channels)
    weight = random(outputs, channels, kernel, kernel) / (channels * kernel**2)**.5
    bias, point = random(outputs, seed=1), random(6, outputs) / outputs**.5
    layer = native.Layer.of(weight.permute(0, 2, 3, 1).flatten(1), bias)
    patches = native.Patches(kernel, stride, padding)
    exact = F.conv2d(x.permute(0, 3, 1, 2).double(), weight.double(), bias.double(), stride,
                     padding).permute(0, 2, 3, 1)
    addend, expected = random(*exact.shape, seed=2), exact.relu()
    out = native.linear(x, layer, activation='relu', patches=patches)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    out = native.linear(x, layer, activation='gelu', patches=patches, addend=addend)
    torch.testing.assert_close(out.double(), F.gelu(exact + addend), rtol=1e-5, atol=1e-5)
    out = native.chain(x, layer, native.Layer.of(point, None), activation='relu', patches=patches)
    torch.testing.assert_close(out.double(), expected @ point.double().T, rtol=1e-5, atol=1e-5)
    # The norm of each patch, whose order does not matter to the norm.
    tokens = F.unfold(x.permute(0, 3, 1, 2).double(), kernel, 1, padding, stride).transpose(1, 2)
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=.1)
    out = native.linear(x, layer, patches=patches, epsilon=.1)
    torch.testing.assert_close(out.double().flatten(1, 2),
                               F.linear(normed, weight.double().flatten(1), bias.double()),
                               rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('activation', ['hardswish', 'gelu_tanh'])
@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize(('size', 'channels', 'hidden', 'outputs'), [
    ((1, 1), 3, 5, 3), ((9, 5), 20, 35, 20), ((2, 31), 16, 64, 8), ((37, 3), 5, 17, 12),
    ((20, 130), 4, 32, 4)])
def test_mobile_convolutions(kernels, size, channels, hidden, outputs, stride, activation):
    act, x = ACTIVATIONS[activation], random(3, *size, channels)
    weight, back = random(hidden, channels), random(outputs, hidden) / hidden**.5
    depth, bias, last = random(hidden, 1, 3, 3), random(hidden, seed=1), random(outputs, seed=2)
    y = act(x.double() @ weight.double().T + bias).permute(0, 3, 1, 2)
    y = act(F.conv2d(y, depth.double(), bias.double(), stride, 1, groups=hidden))
    expected = F.linear(y.permute(0, 2, 3, 1), back.double(), last.double())
    addend = random(*expected.shape, seed=5)
    layers = (native.Layer.of(weight, bias), torch.cat([depth.flatten(1).T, bias[None]]),
              native.Layer.of(back, last))
    for more in (None, addend):
        out = native.mobile(x, *layers, stride=stride, activation=activation, addend=more)
        torch.testing.assert_close(out.double(), expected if more is None else expected + more,
                                   rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize(('groups', 'inputs', 'outputs'), [
    (3, 32, 32), (2, 16, 16), (4, 1, 3), (5, 13, 37), (1, 40, 100)])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (7, 11)])
def test_linear_layers_of_groups(kernels, size, groups, inputs, outputs):
    x = random(2, *size, groups * inputs + 3)[..., 1:-2]
    weight = random(groups, outputs, inputs)
    out = native.grouped(x, native.in_groups(weight), outputs=outputs)
    expected = x.double().unflatten(-1, (groups, inputs)).unsqueeze(-2) @ weight.double().mT
    torch.testing.assert_close(out.double(), expected.flatten(-3), rtol=1e-5, atol=1e-5)
    assert native.grouped(x[:0], native.in_groups(weight), outputs=outputs).shape[0] == 0
    with pytest.raises(RuntimeError, match='float32'):
        native.grouped(x.double(), native.in_groups(weight), outputs=outputs)


@pytest.fixture
def in_tiles(monkeypatch):
    """Says which of the next layers are in tiles, on a processor that has tiles."""
    if not TILES():
        pytest.skip('a processor with AMX is needed')
    monkeypatch.setattr(build, 'library', LIBRARY)
    monkeypatch.setattr(native_layers, '_LEAST_IN_TILES', 0)
    return lambda value: monkeypatch.setattr(build, 'tiles', lambda: value)


@pytest.mark.parametrize('scale', [1e-15, 1., 1e15])
@pytest.mark.parametrize(('inputs', 'outputs'), [(32, 64), (300, 96), (2048, 128)])
def test_tiles_are_as_near_as_float32(in_tiles, inputs, outputs, scale):
    x, weight = random(200, inputs) * scale, random(outputs, inputs, seed=1) * scale
    in_tiles(True)
    layer = native.Layer.of(weight, None)
    exact = x.double() @ weight.double().T
    # Of the sum of the products' magnitudes: cancellation is no fault of a product.
    size = x.double().abs() @ weight.double().abs().T
    ours, torchs = ((out.double() - exact).abs().div(size).max()
                    for out in (native.linear(x, layer), x @ weight.T))
    assert ours < max(1.5 * torchs, 2**-23)


@pytest.mark.parametrize('hidden', [40, 464])
@pytest.mark.parametrize('first_in_tiles', [False, True])
def test_only_one_of_two_layers_in_tiles(in_tiles, hidden, first_in_tiles):
    x, first, second = random(3, 7, 5, 20), random(hidden, 20), random(33, hidden) / hidden**.5
    depth = random(10, hidden)

    def layer(weight: Tensor, tiles: bool) -> native.Layer:
        in_tiles(tiles)
        return native.Layer.of(weight, None)

    plain = layer(first, False), layer(second, False)
    mixed = layer(first, first_in_tiles), layer(second, not first_in_tiles)
    torch.testing.assert_close(*(native.chain(x, *layers, activation='gelu')
                                 for layers in (mixed, plain)), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(*(native.mobile(x, one, depth, two, stride=2, activation='relu')
                                 for one, two in (mixed, plain)), rtol=1e-5, atol=2e-4)


def test_tiles_can_be_refused(tmp_path):
    say = ('import torch; from visattn_dense.ops import native\n'
           'print(native.Layer.of(torch.ones(200, 200), None).packed.dtype)')
    assert run(say, tmp_path, VISATTN_AMX='0') == 'torch.float32'
    expected = 'torch.bfloat16' if build.tiles() else 'torch.float32'
    assert run(say, tmp_path) == expected


@pytest.mark.parametrize('activation', ['gelu', 'gelu_tanh'])
def test_gelu_is_near_everywhere(kernels, activation):
    x = torch.cat([torch.linspace(-30, 30, 60_001), random(40_000) * 3,
                   torch.tensor([-5.5, 5.5, -0., float('inf'), float('-inf'), float('nan')])])
    layer = native.Layer.of(torch.ones(1, 1), None)
    out = native.linear(x[:, None], layer, activation=activation)[:, 0]
    assert out[-1].isnan()
    # The parts of an infinite number are no numbers.
    assert out[-3].isnan() if layer.packed.dtype == torch.bfloat16 else out[-3] == float('inf')
    expected = ACTIVATIONS[activation](x.double())[:-3]
    error = (out[:-3] - expected).abs() / expected.abs().clamp(min=1)
    assert error.max() < 5e-7


def test_linear_layers_take_maps_of_no_tokens_and_refuse_other_dtypes():
    layer = native.Layer.of(torch.ones(3, 2), None)
    assert native.linear(torch.ones(0, 4, 2), layer).shape == (0, 4, 3)
    assert native.chain(torch.ones(4, 0, 2), layer, native.Layer.of(torch.ones(2, 3), None),
                        activation='relu').shape == (4, 0, 2)
    for dtype in (torch.float64, torch.bfloat16):
        with pytest.raises(RuntimeError, match='float32'):
            native.linear(torch.ones(4, 2, dtype=dtype), layer)


def test_packed_weights_have_the_dtype_that_the_kernels_read():
    """With float16 as the default, they were written beyond the end of their memory."""
    weight, before = random(3, 5), torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        layer = native.Layer.of(weight, None, in_tiles=False)
    finally:
        torch.set_default_dtype(before)
    assert layer.packed.dtype == torch.float32
    torch.testing.assert_close(native.linear(torch.eye(5), layer), weight.mT)


def test_what_is_no_rows_is_refused():
    groups, _ = window_groups(1, 4, 1, (4, 1), False)
    x = random(1, 4, 8)
    for wrong in (x.double(), x.mT.contiguous().mT):
        with pytest.raises(RuntimeError, match='float32 or bfloat16'):
            native.attend(wrong, x, x, torch.empty_like(x), groups, heads=1, scale=1.)
    assert native.why_not(x.double()) and native.why_not(x.to('meta'))
    assert native.why_not(x.requires_grad_())
    with torch.no_grad():
        assert native.why_not(x) is None


ATTENTIONS = {
    'cross': lambda: CrossShapedWindowAttention(24, 4, stripe_width=3),
    'cross, padding masked': lambda: CrossShapedWindowAttention(24, 4, stripe_width=3,
                                                                mask_padding=True),
    'whole map': lambda: CrossShapedWindowAttention(24, 4, stripe_width=None),
    'focused': lambda: FocusedLinearAttention(24, 2, native_size=(6, 6)),
    'focused stripes': lambda: FocusedLinearAttention(24, 4, native_size=(6, 6), stripe_width=4),
    'focused, p = 2.5': lambda: FocusedLinearAttention(24, 2, native_size=(6, 6),
                                                       focusing_factor=2.5),
    'routed': lambda: BiLevelRoutingAttention(24, 4, n_win=3, topk=2),
    'routed, narrow q and k': lambda: BiLevelRoutingAttention(24, 2, n_win=2, topk=3, qk_dim=8),
    'routed, soft': lambda: BiLevelRoutingAttention(24, 4, n_win=3, topk=2, soft_routing=True),
    'routed, 7×7 LePE': lambda: BiLevelRoutingAttention(24, 4, n_win=3, topk=2, side_dwconv=7),
    'self': lambda: SelfAttention(24, 4),
    'self with LePE': lambda: LePESelfAttention(24, 4),
}


@pytest.mark.parametrize('name', ATTENTIONS)
@pytest.mark.parametrize('size', [(6, 6), (7, 11), (1, 2)])
@torch.no_grad()
def test_prepared_attention_is_the_naive_one(name, size, monkeypatch):
    module = ATTENTIONS[name]().eval()
    for parameter in module.parameters():
        parameter.normal_(std=.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = random(2, *size, 24)
    expected = (module if name == 'self with LePE' else as_naive(copy.deepcopy(module)))(x)
    called = []
    monkeypatch.setattr(build, 'library', lambda: called.append(1) or LIBRARY())
    prepared = optimize_for_inference(module)
    torch.testing.assert_close(prepared(x), expected, rtol=1e-4, atol=1e-5)
    assert called, 'no kernel was used'
    # What the kernels do not take goes the other way.
    torch.testing.assert_close(prepared(x.clone().requires_grad_()), expected, rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize('name', ATTENTIONS)
@torch.no_grad()
def test_prepared_attention_in_bfloat16_is_as_near_as_torch(name, monkeypatch):
    module = ATTENTIONS[name]().eval()
    for parameter in module.parameters():
        parameter.normal_(std=.3, generator=torch.Generator().manual_seed(parameter.numel()))
    module.bfloat16()
    x = random(2, 13, 11, 24).bfloat16()
    exact = copy.deepcopy(module).float()(x.float())
    called = []
    monkeypatch.setattr(build, 'library', lambda: called.append(1) or LIBRARY())
    torchs, out = module(x), optimize_for_inference(copy.deepcopy(module))(x)
    assert out.dtype == torch.bfloat16

    def error(t: Tensor) -> float:
        return float((t.float() - exact).norm() / exact.norm())

    assert error(out) < max(1.2 * error(torchs), 2**-8)
    # With tile registers, torch's own attention of whole maps is the faster one in bfloat16.
    assert bool(called) != (name == 'self' and native.tiles()), called


@torch.no_grad()
def test_the_scale_of_focused_attention_is_not_rounded():
    """It multiplies every token: its errors do not cancel."""
    qkv, position, scale = (random(*shape).bfloat16() for shape in (
        (1, 8, 8, 3, 64), (1, 64, 64), (1, 1, 64)))

    def out(dtype: torch.dtype, mode: str) -> Tensor:
        return focused_attention(
            qkv.to(dtype), (8, 8), num_heads=2, position=position.to(dtype),
            scale=scale.to(dtype), power=3, epsilon=1e-6,
            kernel=torch.zeros(64, 1, 5, 5, dtype=dtype), bias=None, mode=mode).double()

    exact = out(torch.float64, 'reference')
    torchs, ours = ((out(torch.bfloat16, mode) - exact).norm() for mode in ('auto', 'inference'))
    assert ours < 1.2 * torchs


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('size', [(6, 6), (7, 11), (1, 2)])
@torch.no_grad()
def test_prepared_attention_of_nchw_maps(size, batch, dtype, monkeypatch):
    module = LiteMLA(24, 3, scales=(5, 3)).eval()
    for parameter in module.parameters():
        parameter.normal_(std=.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = random(batch, 24, *size).contiguous(memory_format=torch.channels_last)
    expected = as_naive(copy.deepcopy(module))(x)
    called = []
    prepared = optimize_for_inference(module.to(dtype))
    relu_attention = native.relu_attention
    monkeypatch.setattr(native, 'relu_attention',
                        lambda *args, **kwargs: called.append(1) or relu_attention(*args, **kwargs))
    maps = []
    prepared.proj.register_forward_pre_hook(lambda _, args: maps.append(args[0]))
    out = prepared(x.to(dtype))
    for each in (*maps, out):
        assert each.is_contiguous(memory_format=torch.channels_last) and each.dtype == dtype
    assert len(called) == len(maps) == 1
    error = (out.float() - expected).norm() / expected.norm()
    assert error < (1e-5 if dtype == torch.float32 else 2**-5)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_prepared_residual_attention_adds_in_its_last_layer(monkeypatch, dtype):
    monkeypatch.setenv('VISATTN_MEASURE', '0')
    block = Residual(LiteMLA(24, 3, scales=(5,))).eval()
    for parameter in block.parameters():
        parameter.normal_(std=.3, generator=torch.Generator().manual_seed(parameter.numel()))
    x = random(2, 24, 7, 5)
    expected = block(x)
    prepared = optimize_for_inference(copy.deepcopy(block).to(dtype))
    if dtype == torch.float32:
        assert type(prepared.main.proj) is torch.nn.Identity
    for given in (x, x.to(memory_format=torch.channels_last)):
        for form in (prepared, copy.deepcopy(prepared)):
            error = (form(given.to(dtype)).float() - expected).norm() / expected.norm()
            assert error < (1e-5 if dtype == torch.float32 else 2**-5)


@torch.no_grad()
def test_prepared_layers_are_the_same():
    for module in (DepthwiseConv(20), DepthwiseConv(6, 5, bias=False), DepthwiseConv(3, 7)):
        x = random(2, 5, 9, module.in_channels)
        plain = copy.deepcopy(module)
        optimize_for_inference(module.eval())
        torch.testing.assert_close(module(x), plain(x), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(module.add_to(x), x + plain(x), rtol=1e-5, atol=1e-5)
    mlp, x = Mlp(6, 21).eval(), random(3, 5, 6)
    expected = mlp(x)
    torch.testing.assert_close(optimize_for_inference(mlp)(x), expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('kernel', [3, 5, 7])
def test_prepared_convolution_with_a_norm_is_the_same(dtype, kernel):
    for channels in (1, 6, 20, 67):
        conv = DepthwiseConv(channels, kernel).to(dtype)
        norm = PreNorm(channels, eps=1e-6).to(dtype)
        for p in norm.parameters():
            p.copy_(torch.rand(channels))
        x = random(2, 5, 9, channels).to(dtype)
        total = conv.add_to(x)
        expected = total, norm(total)
        optimize_for_inference(conv.eval())
        found = conv.add_to_and_norm(x, norm)
        error = 2e-2 if dtype == torch.bfloat16 else 2e-5
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=error, atol=error)
        called = []
        norm.register_forward_hook(lambda *_, called=called: called.append(1))
        for one, other in zip(conv.add_to_and_norm(x, norm), found, strict=True):
            torch.testing.assert_close(one, other, rtol=error, atol=error)
        assert called == [1]


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('channels', [1, 6, 16, 20, 67])
def test_prepared_norms_are_the_same(dtype, channels):
    error = 2e-2 if dtype == torch.bfloat16 else 1e-5

    def randomized(norm: torch.nn.LayerNorm) -> torch.nn.LayerNorm:
        for p in norm.parameters():
            p.copy_(torch.rand(channels))
        return norm.to(dtype)

    maps = random(2, channels, 5, 9).to(dtype)
    for norm, x in ((LayerNorm2d(channels, eps=1e-6), maps),
                    (LayerNorm2d(channels), maps.to(memory_format=torch.channels_last)),
                    (torch.nn.LayerNorm(channels), random(2, 7, channels).to(dtype)),
                    (torch.nn.LayerNorm(channels), random(2, 7, 2 * channels).to(dtype)[..., ::2]),
                    (torch.nn.LayerNorm(channels), random(0, 7, channels).to(dtype))):
        for act in (torch.nn.Identity(), torch.nn.GELU()):
            plain = torch.nn.Sequential(randomized(norm), act)
            prepared = optimize_for_inference(copy.deepcopy(plain).eval())
            assert type(prepared[0]) is NativeNorm
            found, expected = prepared(x), plain(x)
            torch.testing.assert_close(found, expected, rtol=error, atol=error)
    norm = randomized(PreNorm(channels))
    x, update = random(2, 5, 9, channels).to(dtype), random(2, 5, 9, channels).to(dtype)
    expected = norm(x), *norm(x, update), *norm(x, update, torch.rand(2, 1, 1, 1).to(dtype) * 0)
    optimize_for_inference(norm.eval())
    found = norm(x), *norm(x, update), *norm(x, update, torch.rand(2, 1, 1, 1).to(dtype) * 0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=error, atol=error)


@pytest.mark.parametrize('norm', [
    torch.nn.LayerNorm(6, elementwise_affine=False), torch.nn.LayerNorm((5, 6)),
    torch.nn.LayerNorm(6, bias=False)])
def test_other_norms_stay(norm):
    prepared = optimize_for_inference(torch.nn.Sequential(copy.deepcopy(norm)).eval())
    assert type(prepared[0]) is torch.nn.LayerNorm
    torch.testing.assert_close(prepared(x := random(2, 5, 6)), norm(x))


@torch.no_grad()
def test_prepared_convolution_in_groups_is_the_same(monkeypatch):
    monkeypatch.setenv('VISATTN_MEASURE', '0')
    conv, x = GroupedPointwiseConv(15, 21, groups=3), random(2, 15, 5, 9)
    expected = conv(x)

    def prepare(*layers: torch.nn.Module) -> torch.nn.Module:
        return optimize_for_inference(torch.nn.Sequential(*copy.deepcopy(layers)).eval())

    prepared = prepare(conv)
    assert type(prepared[0]) is NativeGroupedConv
    torch.testing.assert_close(prepared(x), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prepare(conv, torch.nn.ReLU())(x), F.relu(expected), rtol=1e-5,
                               atol=1e-5)
    assert prepare(conv.bfloat16())(x.bfloat16()).dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize(('channels', 'outputs', 'side', 'size', 'bias'), [
    (16, 16, 2, (4, 6), True), (3, 5, 2, (5, 7), False), (7, 20, 3, (3, 1), True),
    (48, 33, 4, (1, 13), True), (130, 70, 2, (17, 31), True)])
def test_prepared_transposed_convolution_is_the_same(monkeypatch, channels, outputs, side, size,
                                                     bias):
    monkeypatch.setenv('VISATTN_MEASURE', '0')
    conv = torch.nn.ConvTranspose2d(channels, outputs, side, side, bias=bias)
    x = random(2, channels, *size)
    for act in (torch.nn.Identity(), torch.nn.ReLU(), torch.nn.GELU()):
        prepared = optimize_for_inference(torch.nn.Sequential(copy.deepcopy(conv), act).eval())
        assert type(prepared[0]) is NativeTransposedConv
        for given in (x, x.to(memory_format=torch.channels_last), x[:0]):
            torch.testing.assert_close(prepared(given), act(conv(given)), rtol=1e-5, atol=1e-5)
    half = optimize_for_inference(torch.nn.Sequential(copy.deepcopy(conv).bfloat16()).eval())
    assert half(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize('more', [dict(stride=1), dict(stride=3), dict(stride=2, padding=1),
                                  dict(stride=2, output_padding=1), dict(stride=2, groups=2),
                                  dict(stride=2, dilation=2), dict(kernel_size=(2, 1), stride=2)])
@torch.no_grad()
def test_other_transposed_convolutions_stay(more):
    conv, x = torch.nn.ConvTranspose2d(4, 6, **{'kernel_size': 2, **more}), random(1, 4, 5, 3)
    prepared = optimize_for_inference(torch.nn.Sequential(copy.deepcopy(conv)).eval())
    assert type(prepared[0]) is torch.nn.ConvTranspose2d
    torch.testing.assert_close(prepared(x), conv(x))


@pytest.mark.parametrize('channels', [3, 7])
@pytest.mark.parametrize('layer', [
    torch.nn.Linear(6, 8), torch.nn.LayerNorm(6), TransformerBlock(6, torch.nn.Identity()),
    torch.nn.Conv2d(6, 8, 1), torch.nn.Conv2d(6, 8, 3), torch.nn.ConvTranspose2d(6, 8, 2, 2),
    GroupedPointwiseConv(6, 8, groups=2), LayerNorm2d(6), Residual(MBConv(6, 6), shortcut=True),
    Residual(FusedMBConv(6, 6), shortcut=True)], ids=lambda layer: type(layer).__name__)
@torch.no_grad()
def test_prepared_layers_refuse_other_channels(layer, channels, monkeypatch):
    """The kernels would read memory that is not theirs."""
    monkeypatch.setenv('VISATTN_MEASURE', '0')
    prepared = optimize_for_inference(torch.nn.Sequential(copy.deepcopy(layer)).eval())
    takes_maps = not isinstance(layer, (torch.nn.Linear, TransformerBlock)) and (
        type(layer) is not torch.nn.LayerNorm)
    x = random(2, 5, 9, channels)
    # The norm of a block is an operator, which leaves the message to torch.
    message = rf'takes 6 channels, got {channels}|shape=\[6\].*, {channels}\]'
    with pytest.raises(RuntimeError, match=message):
        prepared(x.permute(0, 3, 1, 2) if takes_maps else x)


@torch.no_grad()
def test_a_prepared_backbone_refuses_images_of_other_channels(monkeypatch):
    monkeypatch.setenv('VISATTN_MEASURE', '0')
    for family in ('CSWin', 'T2TViT'):
        prepared = optimize_for_inference(BACKBONES[family]().eval())
        with pytest.raises(RuntimeError, match='takes 3 channels, got 1'):
            prepared(random(1, 1, 64, 64))


@torch.no_grad()
def test_prepared_attention_compiles_without_the_kernels():
    module = optimize_for_inference(CrossShapedWindowAttention(8, 2, stripe_width=2).eval())
    x = random(1, 5, 4, 8)
    compiled = torch.compile(module, backend='eager', fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-5, atol=1e-6)


def run(code: str, cache: Path, **environment: str) -> str:
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                          env=dict(os.environ, XDG_CACHE_HOME=str(cache), **environment))
    return done.stdout.strip()


SAY = ('import torch; from visattn_dense.ops import native\n'
       'from visattn_dense.layers import Mlp, optimize_for_inference\n'
       'with torch.no_grad(): optimize_for_inference(Mlp(3, 5).eval())(torch.zeros(2, 3))\n'
       'print(native.why_not())')


def test_kernels_are_compiled_once(tmp_path):
    assert run(SAY, tmp_path) == 'None'
    kept, = (tmp_path / 'visattn_dense').iterdir()
    time = kept.stat().st_mtime_ns
    assert run(SAY, tmp_path) == 'None'
    assert [p.name for p in kept.parent.iterdir()] == [kept.name]
    assert kept.stat().st_mtime_ns == time
    # A file that is none, of a disk that was full: compiled anew, not believed.
    kept.write_bytes(b'')
    assert run(SAY, tmp_path) == 'None' and kept.stat().st_size > 10_000


@pytest.mark.parametrize(('environment', 'reason'), [
    ({'VISATTN_NATIVE': '0'}, 'VISATTN_NATIVE=0'),
    ({'CXX': '/no/such/compiler'}, 'names no program'),
    ({'CXX': 'g++ "'}, 'No closing quotation'),
    ({'CXX': 'false'}, 'failed'),
    ({'CXX': '', 'PATH': ''}, 'no C++ compiler'),
])
def test_without_kernels_torch_computes(tmp_path, environment, reason):
    assert reason in run(SAY, tmp_path, **environment)
    assert not list(tmp_path.glob('visattn_dense/*'))


@pytest.mark.parametrize('measured', ['0', '1'])
def test_bfloat16_where_onednn_has_none(tmp_path, measured):
    # oneDNN as on a processor with AVX2 alone: there its packed layers take no bfloat16.
    code = ('import copy, torch\n'
            'from visattn_dense.layers import optimize_for_inference\n'
            'from torch.nn import Conv2d, Linear, ReLU, Sequential\n'
            'model = Sequential(Conv2d(4, 8, 3), Conv2d(8, 8, 1), ReLU(), Linear(3, 7))\n'
            'model, x = model.eval().bfloat16(), torch.randn(2, 4, 5, 5).bfloat16()\n'
            'with torch.no_grad():\n'
            '    fast = optimize_for_inference(copy.deepcopy(model))\n'
            '    torch.testing.assert_close(fast(x), model(x), rtol=2e-2, atol=2e-2)\n'
            'print(torch.ops.mkldnn._is_mkldnn_bf16_supported())')
    assert run(code, tmp_path, ONEDNN_MAX_CPU_ISA='AVX2', VISATTN_NATIVE='0',
               VISATTN_MEASURE=measured) == 'False'


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / 'visattn_dense').write_text('a file where the folder would be')
    assert 'cannot be made or loaded' in run(SAY, tmp_path)
