"""Routed attention in Triton: its cases in a process of their own, and what needs no device."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from visattn_dense.attention import routed, routed_attention
from visattn_dense.ops.group_attention import routed_triton
from visattn_dense.ops.group_attention.routed_triton import Tile

CASES = Path(__file__).with_name('routed_triton_cases.py')
needs_triton = pytest.mark.skipif(not routed_triton.HAS_TRITON, reason='needs Triton')


@needs_triton
def test_cases(tmp_path):
    """On the GPU where there is one, else in Triton's interpreter."""
    env = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST_')}
    if not torch.cuda.is_available():
        env['TRITON_INTERPRET'] = '1'
    run = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '-p', 'no:xdist',
         str(CASES)],
        cwd=CASES.parents[1], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    assert ' passed' in run.stdout


def inputs(**kwargs) -> list[torch.Tensor]:
    return [torch.randn(1, 2, 3, 1, 4, **kwargs) for _ in range(3)]


INDEX = torch.tensor([[[1], [0]]])


def test_cpu_tensors_go_in_chunks():
    q, k, v = inputs(requires_grad=True)
    assert 'triton' not in type(routed_attention(q, k, v, INDEX, scale=1.).grad_fn).__name__


@pytest.mark.skipif(routed_triton.INTERPRETED, reason='the interpreter takes CPU tensors')
def test_triton_on_the_cpu_is_an_error_that_says_why():
    with routed.use_implementation('triton'), pytest.raises(ValueError, match="use 'auto'"):
        routed_attention(*inputs(), INDEX, scale=1.)


def test_implementations_are_named_and_put_back():
    with pytest.raises(ValueError, match='auto, chunked, triton; got'):
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


@pytest.mark.parametrize('forward', [True, False])
@pytest.mark.parametrize('dtype', routed_triton.DTYPES)
def test_tiles_are_what_triton_takes(dtype, forward):
    for own, other, regions, width in [(1, 1, 1, 1), (1, 3, 2, 65), (49, 49, 4, 32), (5, 1, 99, 8),
                                       (4096, 4096, 64, 128), (3, 33, 3, 64), (17, 2, 5, 100)]:
        tile = Tile.of(own, other, regions, dtype, width, forward=forward)
        walked = tile.slots * tile.tokens
        for size in (tile.block, tile.slots, tile.tokens, tile.num_warps):
            assert size > 0 and size & (size - 1) == 0
        assert 16 <= tile.block <= 128 and 16 <= walked <= 64


COMPILE = [
    # dtype, head dim, tokens of a region, routed regions, weighted, compute capability
    ('bf16', 32, 256, 1, False, 90),
    ('fp16', 24, 1, 7, True, 80),
    ('fp32', 16, 49, 2, True, 80),
]


@needs_triton
@pytest.mark.skipif(routed_triton.INTERPRETED, reason='the interpreter compiles nothing')
@pytest.mark.parametrize('dtype, width, tokens, slots, weighted, capability', COMPILE)
@pytest.mark.parametrize('name', ['forward', 'query_gradient', 'key_gradient'])
def test_kernels_compile_to_gpu_code(name, dtype, width, tokens, slots, weighted, capability,
                                     tmp_path, monkeypatch):
    """Types and shapes are checked by Triton's compiler, not by its interpreter; needs no GPU."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from visattn_dense.ops.group_attention import triton_kernels as kernels
    monkeypatch.setenv('TRITON_CACHE_DIR', str(tmp_path))
    kernel = getattr(kernels, f'{name}_kernel')
    torch_dtype = dict(zip(('fp32', 'bf16', 'fp16'), routed_triton.DTYPES, strict=True))[dtype]
    tile = Tile.of(tokens, tokens, slots, torch_dtype, width, forward=name == 'forward')
    half = torch.empty(1, 1, 1, 1, width)
    options = routed_triton._launch_options(tile, half, half, half if weighted else None)
    launch = {key: options.pop(key) for key in ('num_warps', 'num_stages', 'enable_fp_fusion')}
    # What a launch makes constant: no tensor, the number 1.
    constant = {**options, **{key: 1 for key in ('q_d', 'k_d', 'v_d', 'g_d')}}
    constant |= {} if weighted else dict(weight=None, grad_w=None)
    constant |= dict(N=1, M=1, R=1, HEADS=1) if tokens == 1 else {}
    pointers = {'lse': 'fp32', 'delta': 'fp32', 'grad_w': 'fp32', 'weight': 'fp32',
                'index': 'i64', 'askers': 'i64', 'offsets': 'i64',
                **{key: dtype for key in ('q', 'k', 'v', 'out', 'grad', 'grad_q', 'grad_k',
                                          'grad_v')}}
    signature = {
        key: 'constexpr' if key in constant else 'fp32' if key == 'scale'
        else f'*{pointers[key]}' if key in pointers else 'i32' for key in kernel.arg_names}
    source = ASTSource(kernel, signature,
                       {key: value for key, value in constant.items() if key in signature})
    binary = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=launch)
    # What a thread block may have on every GPU from capability 8.0 on.
    assert binary.metadata.shared <= 99 * 1024
    assert dtype == 'fp32' or 'mma' in binary.asm['ptx']
