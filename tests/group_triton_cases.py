"""Windows, whole maps and regions of maps by Triton. tests/test_routed_triton.py runs these cases
in a process of their own: on the GPU where there is one, else in Triton's interpreter, which has to
be chosen before Triton is imported."""
import time

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from visattn_dense.attention import CrossShapedWindowAttention
from visattn_dense.attention.naive import as_naive
from visattn_dense.ops import use_implementation
from visattn_dense.ops.choose import decisions
from visattn_dense.ops.group_attention import (
    full_attention,
    region_attention,
    triton_form,
    window_attention,
)
from visattn_dense.ops.group_attention.fused import fused_attention

from .interpreting import DEVICE, TOLERANCE, forbid_races, interpret_quickly, poisoned_memory

forbid_races()
interpret_quickly()


@pytest.fixture(autouse=True)
def poisoned():
    """Triton is used, and memory that nothing has written to holds NaN."""
    with poisoned_memory(), use_implementation('triton'):
        yield


def surrounded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random numbers in a wider tensor, with NaN before and after the channels of each token."""
    whole = torch.full((*shape[:-1], shape[-1] + 7), float('nan'), dtype=dtype, device=DEVICE)
    view = whole[..., 3:-4]
    view.copy_(torch.randn(shape))
    return view.requires_grad_()


def learned(*shape: int) -> Tensor:
    return torch.randn(*shape, device=DEVICE).requires_grad_()


def check(operator, inputs: list[Tensor], *, slack: float = 1, **options) -> list[Tensor]:
    """Hold the result and all gradients to the equation in float64.

    An error is measured against the largest entry of the expected tensor; that of a gradient
    against the largest of its kind: those of the maps, or those of the parameters.

    Returns:
        The gradients of `inputs`.
    """
    def run(form: str, tensors: list[Tensor], rest: dict):
        with use_implementation(form):
            out = operator(*tensors, **rest)
        wanted = [t for t in [*tensors, *tree_leaves(rest)]
                  if isinstance(t, Tensor) and t.requires_grad]
        # Small numbers that all dtypes have.
        grad = torch.arange(out.numel(), device=DEVICE).mul(37).remainder(17).sub(8).div(8)
        grads = torch.autograd.grad(out, wanted, grad.view(out.shape).to(out.dtype))
        return [out, *grads]

    found = run('triton', inputs, options)
    exact = {id(t): t.detach().double().requires_grad_(t.requires_grad)
             for t in [*inputs, *tree_leaves(options)]
             if isinstance(t, Tensor) and t.is_floating_point()}
    expected = run('reference', [exact[id(t)] for t in inputs],
                   tree_map(lambda value: exact.get(id(value), value), options))
    kind = inputs[0].dtype
    assert found[0].dtype == kind
    assert [g.dtype for g in found[1:1 + len(inputs)]] == [t.dtype for t in inputs]
    of_maps = max(g.abs().max() for g in expected[1:1 + len(inputs)])
    for place, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape
        most = of_maps if 0 < place <= len(inputs) else b.abs().max()
        assert (a - b).abs().max() / most < slack * TOLERANCE[kind], place      # false for NaN
    return found[1:1 + len(inputs)]


WINDOWS = {
    # B, H, W, windows, heads, channels of a head, side of the convolution, bias
    'padding on all sides': (2, 4, 7, [(3, 5)], 1, 5, 3, True),
    'vertical stripes': (1, 5, 5, [(5, 2)], 2, 8, 3, True),
    'horizontal stripes': (1, 5, 4, [(2, 4)], 1, 3, 3, False),
    'stripes of one column': (1, 6, 2, [(6, 1)], 1, 16, 3, True),
    'one window': (1, 3, 5, [(3, 5)], 1, 7, 5, True),
    'several tiles': (1, 11, 13, [(11, 12)], 1, 24, 3, True),
    'two directions': (2, 4, 5, [(4, 2), (3, 5)], 4, 3, 3, True),
    'small and large windows': (2, 9, 15, [(2, 15), (9, 8)], 2, 4, 5, True),
    'large and small windows': (1, 9, 15, [(9, 8), (1, 15)], 4, 16, 3, False),
    'one bias of two': (1, 3, 4, [(3, 1), (2, 4)], 2, 3, 3, 'first'),
}


@pytest.mark.parametrize('padding_counts', [True, False])
@pytest.mark.parametrize('name', WINDOWS)
def test_windows_are_the_equation(name, padding_counts):
    batch, height, width, windows, heads, d, side, has_bias = WINDOWS[name]
    own = heads * d // len(windows)
    grads = check(window_attention, [surrounded(batch, height, width, 3, heads * d)],
                  windows=windows, num_heads=heads, padding_counts=padding_counts,
                  kernels=[learned(own, 1, side, side) for _ in windows],
                  biases=[learned(own) if has_bias is True or has_bias and i == 0 else None
                          for i in range(len(windows))])
    assert (grads[0] != 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('windows', [[(9, 7)], [(9, 3), (5, 10)]])
def test_windows_in_half_precision(windows, dtype):
    """The parameters stay in float32, as under autocast."""
    kinds = len(windows)
    check(window_attention, [surrounded(1, 9, 10, 3, 32 * kinds, dtype=dtype)], windows=windows,
          num_heads=kinds, kernels=[learned(32, 1, 3, 3) for _ in windows],
          biases=[learned(32) for _ in windows], scale=.3)


@pytest.mark.parametrize('windows, sides, reason', [
    ([(3, 1), (1, 4), (2, 2)], (3, 3, 3), 'more than two kinds'),
    ([(3, 1), (1, 4)], (3, 5), 'differ in their sides'),
    ([(3, 1)], (9,), 'not one of')])
def test_other_windows_are_left_to_torch(windows, sides, reason):
    kinds = len(windows)
    kernels = [torch.randn(6 // kinds, 1, side, side, device=DEVICE) for side in sides]
    arguments = dict(windows=windows, num_heads=kinds, kernels=kernels, biases=[None] * kinds)
    qkv = torch.randn(1, 3, 4, 3, 6, device=DEVICE)
    assert reason in triton_form.why_not_windows(qkv, **arguments)
    with use_implementation('auto'):
        torch.testing.assert_close(window_attention(qkv, **arguments),
                                   window_attention(qkv, mode='reference', **arguments))


def test_other_batches_and_channels_are_left_to_torch():
    """The kernels would read beside them."""
    q, k = torch.randn(2, 5, 8, device=DEVICE), torch.randn(1, 5, 8, device=DEVICE)
    assert 'batches' in triton_form.why_not_full(q, k, k, num_heads=2)
    assert 'keys and values' in triton_form.why_not_full(q, q, q[:, :3], num_heads=2)
    qkv = torch.randn(1, 3, 4, 3, 6, device=DEVICE)
    assert 'channels' in triton_form.why_not_windows(
        qkv, [(3, 1)], num_heads=1, kernels=[torch.randn(3, 1, 3, 3, device=DEVICE)])


def test_biases_in_half_precision():
    """One beside none is computed; two of several dtypes are left to torch."""
    qkv, half = torch.randn(1, 3, 4, 3, 6, device=DEVICE), torch.randn(3, device=DEVICE).bfloat16()
    arguments = dict(windows=[(3, 1), (1, 4)], num_heads=2,
                     kernels=[torch.randn(3, 1, 3, 3, device=DEVICE) for _ in range(2)])
    torch.testing.assert_close(
        window_attention(qkv, biases=[None, half], **arguments),
        window_attention(qkv, biases=[None, half.float()], mode='reference', **arguments))
    assert 'biases' in triton_form.why_not_windows(qkv, biases=[half, half.float()], **arguments)


def test_padding_beside_very_low_and_very_high_logits():
    """A key of the padding has logit 0: nearly all of the softmax, or nothing."""
    for sign in (-1, 1):
        qkv = surrounded(1, 3, 3, 3, 4)
        with torch.no_grad():
            qkv[:, :, :, 0].fill_(6.)
            qkv[:, :, :, 1].mul_(.01).add_(sign * 6.)
        for counts in (True, False):
            # Logits of 72 have errors of 72 roundings.
            check(window_attention, [qkv], windows=[(2, 2)], num_heads=1,
                  kernels=[learned(4, 1, 3, 3)], biases=[None], padding_counts=counts, slack=5)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_whole_maps_are_the_equation(dtype):
    check(full_attention, [surrounded(2, 35, 14, dtype=dtype), surrounded(2, 41, 14, dtype=dtype),
                           surrounded(2, 41, 6, dtype=dtype)], num_heads=2)


def test_parts_of_one_projection():
    """q, k and v side by side, and a gradient that is one number."""
    q, k, v = torch.randn(2, 9, 24, device=DEVICE).requires_grad_().chunk(3, -1)
    check(full_attention, [q, k, v], num_heads=1, scale=.2)
    out = full_attention(q, k, v, num_heads=1)
    for grad in torch.autograd.grad(out.sum(), (q, k, v)):
        assert grad.isfinite().all()


@pytest.mark.parametrize('topk, options', [
    (1, {}), (3, dict(weight=True)), (2, dict(pool=nn.AdaptiveMaxPool2d((1, 2)), weight=True))])
def test_regions_of_a_map_are_the_equation(topk, options):
    """Regions of 3×2 tokens; the maps are parts of wider maps."""
    maps = [surrounded(1, 6, 4, 2 * width) for width in (5, 5, 3)]
    index = torch.rand(1, 4, 4).topk(topk).indices.to(DEVICE)
    if 'weight' in options:
        options = dict(options, weight=torch.rand(1, 4, topk, device=DEVICE).requires_grad_())
    check(region_attention, maps, index=index, num_heads=2, n_win=2, scale=.4, **options)


def test_all_regions_ask_for_one():
    """The list of that region is cut into segments, whose sums are added."""
    maps = [surrounded(1, 6, 6, 4) for _ in range(3)]
    index = torch.full((1, 9, 1), 4, device=DEVICE)
    grads = check(region_attention, maps, index=index, num_heads=1, n_win=3, scale=.4)
    for grad in grads[1:]:
        there = grad != 0
        assert there[:, 2:4, 2:4].all() and there.sum() == 16


def test_operator_of_windows_is_sound():
    """torch's own check: schema, fake tensors, autograd registration, AOT dispatch."""
    qkv = surrounded(1, 3, 2, 3, 4)
    for kinds, biases in ((1, []), (1, [learned(4)]), (2, [learned(2), learned(2)])):
        kernels = [learned(4 // kinds, 1, 3, 3) for _ in range(kinds)]
        torch.library.opcheck(
            torch.ops.visattn.window_attention.default,
            (qkv, kernels, biases, 2, [2, 2, 3, 1][:2 * kinds], .3, True, True))


def test_a_pass_without_gradients_keeps_nothing_and_has_none():
    qkv, kernel = torch.randn(1, 2, 2, 3, 4, device=DEVICE), torch.randn(4, 1, 3, 3, device=DEVICE)
    out, mixed, _ = torch.ops.visattn.window_attention(
        qkv.requires_grad_(), [kernel], [], 1, [2, 2], .3, True, False)
    assert mixed.numel() == 0
    with pytest.raises(RuntimeError, match='keep=False'):
        out.sum().backward()


def test_compiles_whole_and_is_the_equation():
    """One graph for all sizes; forward and gradients beside the naive module."""
    attn = CrossShapedWindowAttention(8, 2, stripe_width=2).to(DEVICE)
    slow = as_naive(CrossShapedWindowAttention(8, 2, stripe_width=2).to(DEVICE))
    slow.load_state_dict(attn.state_dict())
    compiled = torch.compile(attn, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in ((3, 4), (4, 5)):
        x = torch.randn(1, *size, 8, device=DEVICE)
        found = []
        for form, run in (('triton', compiled), ('reference', slow)):
            with use_implementation(form):
                out = run(x)
            found.append([out, *torch.autograd.grad(out.square().sum(), run.parameters())])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_autocast_gives_half_precision_and_gradients_of_parameters_in_float32():
    attn = CrossShapedWindowAttention(8, 2, stripe_width=2).to(DEVICE)
    x = torch.randn(1, 3, 4, 8, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        low = attn(x)
        low_full = full_attention(x[0], x[0], x[0], num_heads=2)
    assert low.dtype == low_full.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), attn(x), rtol=.05, atol=.05)
    low.float().sum().backward()
    assert {p.grad.dtype for p in attn.parameters()} == {torch.float32}


@pytest.mark.parametrize('change, reason', [
    (dict(dtype=torch.float64), 'float64'), (dict(width=129), '129'), (dict(scale=-1.), 'scale')])
def test_what_triton_cannot_take_goes_to_torch(change, reason):
    dtype, width = change.get('dtype', torch.float32), change.get('width', 4)
    q = torch.randn(1, 3, width, dtype=dtype, device=DEVICE)
    options = dict(num_heads=1, scale=change.get('scale'))
    with pytest.raises(ValueError, match=reason):
        full_attention(q, q, q, **options)
    with use_implementation('auto'):
        torch.testing.assert_close(full_attention(q, q, q, **options),
                                   full_attention(q, q, q, **options, mode='reference'))


def test_triton_is_asked_first():
    q = torch.randn(1, 3, 4, device=DEVICE)
    with use_implementation('auto'):
        full_attention(q, q, q, num_heads=2)
        window_attention(torch.randn(1, 2, 2, 3, 4, device=DEVICE), [(2, 1)], num_heads=1,
                         kernels=[learned(4, 1, 3, 3)], biases=[None])
    computed = {each.operator: each.form for each in decisions() if each.reason is None}
    assert computed['window_attention'] == computed['full_attention'] == 'triton'


def test_gradients_are_the_same_at_every_run():
    qkv, kernel = surrounded(1, 5, 4, 3, 8), learned(8, 1, 3, 3)
    runs = [torch.autograd.grad(
        window_attention(qkv, [(5, 3)], num_heads=1, kernels=[kernel],
                         biases=[None]).square().sum(),
        (qkv, kernel)) for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
def test_torch_form_on_a_gpu():
    """Without cuDNN's backend, eager and compiled."""
    q, k, v = torch.randn(3, 2, 2, 33, 32, device=DEVICE, dtype=torch.bfloat16).requires_grad_()
    compiled = torch.compile(fused_attention, fullgraph=True, backend='aot_eager')
    for run in (fused_attention, compiled):
        out = run(q, k, v, scale=.3)
        assert 'Cudnn' not in type(out.grad_fn).__name__
        exact = (q.double() @ k.double().mT * .3).softmax(-1) @ v.double()
        torch.testing.assert_close(out.double(), exact, rtol=.02, atol=.02)


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
def test_a_new_size_takes_no_time():
    """The kernels are compiled once. A compilation takes seconds, a pass milliseconds."""
    def seconds(height: int, width: int) -> float:
        qkv = torch.randn(1, height, width, 3, 32, device=DEVICE).requires_grad_()
        torch.cuda.synchronize()
        start = time.perf_counter()
        window_attention(qkv, [(height, 7)], num_heads=1, kernels=[kernel],
                         biases=[None]).sum().backward()
        torch.cuda.synchronize()
        return time.perf_counter() - start

    kernel = learned(32, 1, 3, 3)
    seconds(32, 32)
    assert max(seconds(32 + i, 31 + 2 * i) for i in range(8)) < .3
