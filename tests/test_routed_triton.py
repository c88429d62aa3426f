"""Routed attention in Triton: its cases in a process of their own, and what needs no device."""
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks.registers import compile_launch, launches
from visattn_dense.attention import (
    BiLevelRoutingAttention,
    CrossShapedWindowAttention,
    routed,
    routed_attention,
)
from visattn_dense.ops import choose
from visattn_dense.ops.group_attention import triton_form, triton_launch
from visattn_dense.ops.group_attention.triton_launch import Tile
from visattn_dense.ops.launching import DTYPES, HAS_TRITON, INTERPRETED

from .interpreting import MOST_SPILLS, check_kinds, fake_gpu, run_cases

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason='needs Triton')


@needs_triton
@pytest.mark.parametrize('cases', ['routed_triton_cases.py', 'group_triton_cases.py'])
def test_cases(cases):
    """On the GPU where there is one, else in Triton's interpreter."""
    run_cases(cases)


def inputs(**kwargs) -> list[torch.Tensor]:
    return [torch.randn(1, 2, 3, 1, 4, **kwargs) for _ in range(3)]


INDEX = torch.tensor([[[1], [0]]])


def test_cpu_tensors_go_in_chunks():
    q, k, v = inputs(requires_grad=True)
    assert 'triton' not in type(routed_attention(q, k, v, INDEX, scale=1.).grad_fn).__name__


@pytest.mark.skipif(INTERPRETED, reason='the interpreter takes CPU tensors')
def test_triton_on_the_cpu_is_an_error_that_says_why():
    with routed.use_implementation('triton'), pytest.raises(ValueError, match="use 'auto'"):
        routed_attention(*inputs(), INDEX, scale=1.)


def test_implementations_are_named_and_put_back():
    with pytest.raises(ValueError, match='auto, chunked, gathered, triton; got'):
        with routed.use_implementation('cuda'):
            pass
    with pytest.raises(KeyError), routed.use_implementation('triton'):
        raise KeyError
    routed_attention(*inputs(), INDEX, scale=1.)


def test_weights_may_be_wider_than_keys():
    """Autocast leaves a softmax in float32."""
    q, k, v = inputs(dtype=torch.bfloat16)
    out = routed_attention(q, k, v, INDEX, scale=1., weight=torch.ones(1, 2, 1))
    torch.testing.assert_close(out, routed_attention(q, k, v, INDEX, scale=1.))


@pytest.mark.parametrize('kernel', ['forward', 'queries', 'keys'])
@pytest.mark.parametrize('dtype', DTYPES)
def test_tiles_are_what_triton_takes(dtype, kernel):
    for own, other, regions, width in [(1, 1, 1, 1), (1, 3, 2, 65), (49, 49, 4, 32), (5, 1, 99, 8),
                                       (4096, 4096, 64, 128), (3, 33, 3, 64), (17, 2, 5, 100)]:
        tile = Tile.of(own, other, regions, dtype, width, kernel)
        walked = tile.slots * tile.tokens
        for size in (tile.block, tile.slots, tile.tokens, tile.num_warps):
            assert size > 0 and size & (size - 1) == 0
        assert 16 <= tile.block <= 128 and 16 <= walked <= 64


COMPILE = [
    # case of benchmarks.registers, dtype, head dim, compute capability · 10
    ('windows', torch.bfloat16, 32, 90),
    ('small regions', torch.float16, 24, 80),
    ('weighted regions', torch.float32, 16, 80),
]


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('case, dtype, head_dim, capability', COMPILE)
def test_kernels_compile_to_gpu_code(case, dtype, head_dim, capability, tmp_path, monkeypatch):
    """Types and shapes are checked by Triton's compiler, not by its interpreter; needs no GPU."""
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    found = {each.kernel.__name__: each for each in launches(case, dtype, head_dim)}
    assert {'forward_kernel', 'query_gradient_kernel', 'key_gradient_kernel'} <= set(found)
    for name, launch in found.items():
        usage = compile_launch(launch, capability)
        # What a thread block may have on every GPU from capability 8.0 on.
        assert usage.shared <= 99 * 1024
        # A limit of registers spills a few, outside the loop over the tiles.
        is_limited = 'maxnreg' in launch.constants
        assert usage.spills <= (128 if is_limited else MOST_SPILLS) and usage.spills_in_loops == 0
        assert usage.matrix_units == (dtype != torch.float32 and name in (
            'forward_kernel', 'query_gradient_kernel', 'key_gradient_kernel'))
        # The channels of a token lie side by side: a thread loads several at once, not one by one.
        assert min(usage.loads) >= 4 and (usage.loads[16] > 0 or name.startswith('asker'))


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('operator', ['windows', 'whole maps', 'regions'])
def test_a_new_size_compiles_nothing(operator):
    """Launches at other sizes, also of 1 or of multiples of 16, differ in no constant."""
    def run(height: int, width: int, batch: int) -> None:
        qkv = torch.empty(batch, height, width, 3, 64, requires_grad=True)
        q, k, v = qkv.unbind(3)
        if operator == 'windows':
            out = triton_form.window_attention(
                qkv, [(height, 7), (7, width)], num_heads=2,
                kernels=[torch.empty(32, 1, 3, 3) for _ in range(2)], biases=[None] * 2)
        elif operator == 'whole maps':
            out = triton_form.full_attention(*(t.flatten(1, 2) for t in (q, k, v)), num_heads=2)
        else:
            out = triton_form.region_attention(
                q, k, v, torch.zeros(batch, 64, 3, dtype=torch.int64), num_heads=2, n_win=8,
                scale=1.)
        out.backward(torch.empty_like(out))

    check_kinds(run)


@needs_triton
def test_groups_that_float32_cannot_count_are_left_to_torch():
    with FakeTensorMode(), torch.device('cuda'):
        for tokens in (triton_form.MAX_TOKENS, triton_form.MAX_TOKENS + 1):
            q = torch.empty(1, tokens, 1)
            reason = triton_form.why_not_full(q, q, q, num_heads=1)
            assert (reason is None) == (tokens == triton_form.MAX_TOKENS), reason


@fake_gpu
def test_forms_on_a_gpu_that_is_not_there(monkeypatch):
    """Fake tensors on 'cuda' reach the Triton operators, forward and backward, without a GPU."""
    monkeypatch.setattr(choose, '_decisions', {})       # without those of earlier tests
    with FakeTensorMode(), torch.device('cuda'):
        attn = CrossShapedWindowAttention(32, 2, stripe_width=7)
        assert attn(torch.empty(2, 20, 33, 32)).shape == (2, 20, 33, 32)
        attn = BiLevelRoutingAttention(32, 2, n_win=4, topk=3, soft_routing=True)
        assert attn(torch.empty(2, 21, 33, 32)).shape == (2, 21, 33, 32)
        # torch's engine runs no backward pass on a device that is not there.
        qkv, kernel = torch.empty(2, 5, 7, 3, 6), torch.empty(6, 1, 3, 3)
        options = 2, [3, 4], .5
        out, mixed, lse = torch.ops.visattn.window_attention(qkv, [kernel], [], *options, True,
                                                             True)
        grads = torch.ops.visattn.window_attention_backward(out, qkv, [kernel], mixed, lse,
                                                            *options)
        assert [g.shape for g in grads] == [qkv.shape, (1, kernel.numel() + 6)]
        options = 2, 5, 7, 5, 7, .5
        q, k, v = qkv.unbind(3)
        out, lse = torch.ops.visattn.group_attention(q, k, v, None, None, *options)
        grads = torch.ops.visattn.group_attention_backward(out, q, k, v, None, None, out, lse,
                                                           *options)
        assert [g.shape for g in grads] == [q.shape, k.shape, v.shape, (0,)]
    computed = {each.operator: each.form for each in choose.decisions() if each.reason is None}
    assert computed['window_attention'] == computed['region_attention'] == 'triton'


@pytest.mark.parametrize('capability, limited', [((9, 0), True), ((10, 3), False), ((12, 0), True)])
def test_registers_are_limited_where_this_helps(capability, limited, monkeypatch):
    """With capability 10.x, the limit made a kernel spill in its loops (by the compiler)."""
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: capability)
    assert triton_launch._takes_limits() == limited
