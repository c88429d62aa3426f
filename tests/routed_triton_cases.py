"""Cases of tests/test_routed_triton.py, which runs them in a process of their own: on the GPU where
there is one, else in Triton's interpreter, which has to be chosen before Triton is imported."""
import pytest
import torch
from torch import Tensor

from visattn_dense.attention import BiLevelRoutingAttention, routed, routed_attention
from visattn_dense.attention.naive import as_naive
from visattn_dense.ops.launching import INTERPRETED
from visattn_dense.ops.routing.transposed import transpose_routing

from .interpreting import DEVICE, TOLERANCE, forbid_races, interpret_quickly, poisoned_memory

forbid_races()
interpret_quickly()



@pytest.fixture(autouse=True)
def poisoned():
    """Triton is used, and memory that nothing has written to holds NaN."""
    with poisoned_memory(), routed.use_implementation('triton'):
        yield


def naive(q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None,
          scale: float) -> Tensor:
    image = torch.arange(len(q), device=q.device)[:, None, None]
    k, v = k[image, index], v[image, index]                            # (B, R, K, M, h, ·)
    if weight is not None:
        k, v = (t * weight[..., None, None, None] for t in (k, v))
    logits = torch.einsum('brnhd,brkmhd->brhnkm', q, k) * scale
    p = logits.flatten(-2).softmax(-1).view_as(logits)
    return torch.einsum('brhnkm,brkmhe->brnhe', p, v)


def strided(batch: int, regions: int, n: int, m: int, heads: int, d: int, e: int,
            dtype: torch.dtype) -> list[Tensor]:
    """q, k, v as views of one tensor, heads and channels side by side, with NaN all around."""
    tokens = max(n, m)
    whole = torch.full((batch, regions, tokens + 1, 3 + heads * (2 * d + e)), float('nan'),
                       dtype=dtype, device=DEVICE)
    parts = whole[..., 1:-2].split([heads * d, heads * d, heads * e], -1)
    views = [part[:, :, :length].unflatten(-1, (heads, -1))
             for part, length in zip(parts, (n, m, m), strict=True)]
    for view in views:
        view.copy_(torch.randn(view.shape))
    return [view.requires_grad_() for view in views]


def check(q: Tensor, k: Tensor, v: Tensor, index: Tensor, weight: Tensor | None,
          grad: Tensor | None = None, *, slack: float = 1) -> list[Tensor]:
    """Hold output and gradients to the equation in float64; the gradients of q, k, v (and weight).

    An error is measured against the largest entry of the expected tensor.
    """
    inputs = [q, k, v] + ([weight] if weight is not None else [])
    scale = .7 * q.shape[-1] ** -.5
    out = routed_attention(q, k, v, index, scale=scale, weight=weight)
    if grad is None:
        grad = torch.randn(out.shape, device=DEVICE).to(out.dtype)
    grads = torch.autograd.grad(out, inputs, grad)

    exact = [t.detach().double().requires_grad_() for t in inputs]
    expected = naive(*exact[:3], index, exact[3] if weight is not None else None, scale)
    expected_grads = torch.autograd.grad(expected, exact, grad.double())
    assert out.dtype == q.dtype and [g.dtype for g in grads] == [t.dtype for t in inputs]
    # The gradients of one token among few are differences of larger terms.
    size = max(g.abs().max() for g in expected_grads)
    for found, wanted, most in [(out, expected, expected.abs().max()),
                                *((a, b, size) for a, b in zip(grads, expected_grads,
                                                               strict=True))]:
        assert found.shape == wanted.shape
        error = (found - wanted).abs().max() / most
        assert error < slack * TOLERANCE[q.dtype]               # false for NaN
    return list(grads)


SIZES = {
    # B, R, N, M, h, d, e, K
    'odd': (2, 3, 7, 11, 2, 5, 13, 2),
    'one token': (2, 3, 1, 1, 1, 8, 8, 2),
    'one region routed': (1, 3, 9, 5, 1, 16, 16, 1),
    'all regions routed': (1, 3, 4, 6, 2, 7, 3, 3),
    'one region': (2, 1, 3, 2, 1, 4, 4, 1),
    'powers of two': (1, 4, 16, 16, 1, 32, 32, 4),
    'several tiles': (1, 2, 141, 75, 1, 24, 17, 2),
}


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('dtype', TOLERANCE)
def test_kernel_is_the_equation(dtype, size, weighted):
    batch, regions, *tokens, slots = SIZES[size]
    index = torch.rand(batch, regions, regions).topk(slots).indices.to(DEVICE)
    weight = torch.rand(batch, regions, slots, device=DEVICE).requires_grad_() if weighted else None
    check(*strided(batch, regions, *tokens, dtype), index, weight)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_widest_heads(dtype):
    index = torch.tensor([[[1, 0], [0, 1]]], device=DEVICE)
    check(*strided(1, 2, 18, 20, 1, 128, 100, dtype), index, None)


@pytest.mark.parametrize('weighted', [False, True])
def test_repeated_and_unused_regions(weighted):
    index = torch.tensor([[[1, 1, 1], [3, 1, 3], [1, 3, 3], [0, 0, 1], [1, 3, 1]]], device=DEVICE)
    weight = torch.rand(1, 5, 3, device=DEVICE).requires_grad_() if weighted else None
    grads = check(*strided(1, 5, 3, 6, 2, 5, 7, torch.float32), index, weight)
    for grad in grads[1:3]:
        assert (grad[:, [2, 4]] == 0).all() and (grad[:, [0, 1, 3]] != 0).all()


def test_padded_keys_of_very_low_logits():
    """exp(0 − lse) overflows here: a padded key that were not masked would give NaN."""
    q, k, v = strided(1, 2, 3, 5, 1, 4, 4, torch.float32)
    with torch.no_grad():
        q.fill_(10.)
        k.fill_(-10.).add_(torch.randn(k.shape, device=DEVICE) * .01)
    # Logits of −140 have errors of 140 roundings.
    check(q, k, v, torch.tensor([[[1], [0]]], device=DEVICE), None, slack=10)


def test_other_layouts():
    """Channels that are not side by side, a gradient that is one number, int32 regions."""
    q, k, v = (torch.randn(5, 2, 3, 4, 2, device=DEVICE).permute(1, 2, 0, 4, 3).requires_grad_()
               for _ in range(3))
    index = torch.randint(3, (2, 3, 2), device=DEVICE, dtype=torch.int32)
    weight = torch.rand(3, 2, 2, device=DEVICE).transpose(0, 1).requires_grad_()
    check(q, k, v, index, weight, torch.ones((), device=DEVICE).expand(2, 3, 5, 2, 4))
    check(q, k, v, index.transpose(0, 1).contiguous().transpose(0, 1), None)


@pytest.mark.parametrize('options', [
    dict(), dict(soft_routing=True, diff_routing=True, param_routing=True),
    dict(qk_dim=12, kv_downsample_mode='maxpool', kv_downsample_ratio=2)])
def test_attention_is_its_equation(options):
    options = {'n_win': 2, 'topk': 3, **options}
    fast = BiLevelRoutingAttention(20, 2, **options).to(DEVICE)
    slow = as_naive(BiLevelRoutingAttention(20, 2, **options).to(DEVICE))
    slow.load_state_dict(fast.state_dict())
    x = torch.randn(2, 7, 5, 20, device=DEVICE)
    found = []
    for module in (fast, slow):
        inputs = [x.clone().requires_grad_(), *module.parameters()]
        out = module(inputs[0])
        grads = torch.autograd.grad(out.square().mean(), inputs, allow_unused=True)
        found.append([out, *(g for g in grads if g is not None)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_operator_is_sound():
    """torch's own check: schema, fake tensors, autograd registration, AOT dispatch."""
    index = torch.randint(2, (1, 2, 2), device=DEVICE)
    for weight in (None, torch.rand(1, 2, 2, device=DEVICE, requires_grad=True)):
        q, k, v = (t.flatten(-2) for t in strided(1, 2, 2, 3, 1, 4, 4, torch.float32))
        torch.library.opcheck(torch.ops.visattn.group_attention.default,
                              (q, k, v, index, weight, 1, 1, 2, 1, 3, .3))


def test_compiles_whole_and_for_any_size():
    attn = BiLevelRoutingAttention(8, 1, n_win=2, topk=2).to(DEVICE)
    compiled = torch.compile(attn, fullgraph=True, dynamic=True, backend='aot_eager')
    for size in (4, 6):
        x = torch.randn(1, size, size + 2, 8, device=DEVICE)
        torch.testing.assert_close(compiled(x), attn(x))
    compiled(x).sum().backward()
    assert attn.qkv['qkv'].weight.grad.isfinite().all()


def test_autocast():
    attn = BiLevelRoutingAttention(8, 1, n_win=2, topk=2, soft_routing=True).to(DEVICE)
    x = torch.randn(1, 4, 6, 8, device=DEVICE)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        low = attn(x)
    torch.testing.assert_close(low.float(), attn(x), rtol=.05, atol=.05)


def test_gradients_are_the_same_at_every_run():
    inputs = strided(1, 6, 9, 8, 1, 8, 8, torch.float32)
    index = torch.randint(6, (1, 6, 4), device=DEVICE)
    runs = [torch.autograd.grad(routed_attention(*inputs, index, scale=.3).sum(), inputs)
            for _ in range(2)]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize('batch, regions, listed', [(2, 5, 3), (1, 1, 1), (3, 17, 16), (1, 49, 49)])
def test_routing_is_transposed(batch, regions, listed):
    index = torch.randint(regions, (batch, regions, listed), device=DEVICE)
    routing = transpose_routing(index)
    rows, pairs = (index + torch.arange(batch, device=DEVICE)[:, None, None] * regions
                   ).flatten().sort(stable=True)
    assert routing.positions.equal(pairs)
    assert routing.askers.equal((pairs // listed % regions).int())
    starts, lengths, first, many = routing.lists.unbind(1)
    assert lengths.equal(torch.bincount(rows, minlength=batch * regions).int())
    assert starts.equal(lengths.cumsum(0).int() - lengths)
    assert many.equal((lengths + 2 * listed - 1).div(2 * listed).int().clamp(min=1))
    # Every row has its segments, and nothing else is a segment.
    for row in range(batch * regions):
        assert (routing.segments[first[row]:first[row] + many[row]] == row).all()
    assert (routing.segments < batch * regions).sum() == many.sum()
    assert routing.segments.max() <= batch * regions


def test_long_lists_are_cut_into_equal_segments():
    """Region 0 is routed to by all: 9 of the 9 regions with 1 slot each, so 5 segments."""
    index = torch.zeros(1, 9, 1, dtype=torch.int64, device=DEVICE)
    routing = transpose_routing(index)
    assert routing.segments.tolist() == [0] * 5 + list(range(1, 9))
    check(*strided(1, 9, 2, 3, 1, 4, 5, torch.float32), index, None)
    # Every second list has one entry more than two slots hold.
    index = torch.tensor([[[0, 1], [0, 1], [0, 1], [0, 1], [0, 3]]], device=DEVICE)
    assert transpose_routing(index).segments.tolist() == [0, 0, 1, 2, 3, 4, 5]
    check(*strided(1, 5, 2, 20, 2, 4, 5, torch.float32), index,
          torch.rand(1, 5, 2, device=DEVICE).requires_grad_())


@pytest.mark.parametrize('dtype, d, message', [
    (torch.float64, 8, 'float64'), (torch.float32, 129, '129')])
def test_what_triton_cannot_take_is_an_error_or_goes_in_chunks(dtype, d, message):
    q, k, v = strided(1, 2, 3, 3, 1, d, 4, dtype)
    index = torch.tensor([[[1], [0]]], device=DEVICE)
    with pytest.raises(ValueError, match=message):
        routed_attention(q, k, v, index, scale=.3)
    with routed.use_implementation('auto'):
        torch.testing.assert_close(routed_attention(q, k, v, index, scale=.3),
                                   naive(q, k, v, index, None, .3))


@pytest.mark.skipif(INTERPRETED, reason='the interpreter takes CPU tensors only when asked for')
def test_gpu_tensors_go_to_triton():
    q, k, v = strided(1, 2, 3, 3, 1, 4, 4, torch.float32)
    index = torch.tensor([[[1], [0]]], device=DEVICE)
    with routed.use_implementation('auto'):
        out = routed_attention(q, k, v, index, scale=.3)
    assert 'triton' in type(out.grad_fn).__name__


@pytest.mark.parametrize('width', [7, 40])
def test_regions_are_read_where_they_lie_in_a_map(width):
    """2×3 regions of 3×2 query tokens and 2×1 key tokens, narrow and wide heads."""
    def regions(rows: int, columns: int) -> Tensor:
        whole = torch.randn(2, 2 * rows, 3 * columns, 2, width, device=DEVICE)
        return whole.unflatten(2, (3, columns)).unflatten(1, (2, rows)).transpose(2, 3)

    q, k, v = (regions(*size).requires_grad_() for size in ((3, 2), (2, 1), (2, 1)))
    index = torch.rand(2, 6, 6).topk(4).indices.to(DEVICE)
    weight = torch.rand(2, 6, 4, device=DEVICE)
    found = []
    for form in ('triton', 'reference'):
        with routed.use_implementation(form):
            out = routed_attention(q, k, v, index, scale=.3, weight=weight)
        found.append([out, *torch.autograd.grad(out.square().sum(), (q, k, v))])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
