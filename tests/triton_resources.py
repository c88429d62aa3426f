"""Compile the launches of a Triton form for a GPU that is not there, and read what they need.

`python -m tests.triton_resources` prints a table of the operators' kernels: registers of a thread,
bytes of local memory (more than 0: registers are spilled) and bytes of shared memory of a block.
"""
import inspect
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

_TYPES = {torch.float32: 'fp32', torch.bfloat16: 'bf16', torch.float16: 'fp16',
          torch.int64: 'i64', torch.int32: 'i32'}
_OPTIONS = ('num_warps', 'num_stages', 'enable_fp_fusion')


class Launch(NamedTuple):
    """A kernel and the arguments that a form launches it with."""
    kernel: Any
    args: tuple
    options: dict[str, Any]


class Resources(NamedTuple):
    """What a compiled kernel needs."""
    registers: int
    local: int
    shared: int
    ptx: str


@contextmanager
def recorded(module: Any) -> Iterator[list[Launch]]:
    """Inside the block, launches of the kernels of `module` are listed, and nothing runs."""
    from triton.runtime import JITFunction
    launches: list[Launch] = []

    class Recorder:
        def __init__(self, kernel: Any) -> None:
            self.kernel = kernel

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            return lambda *args, **options: launches.append(Launch(self.kernel, args, options))

    kernels = {name: Recorder(kernel) for name, kernel in vars(module).items()
               if isinstance(kernel, JITFunction) and name.endswith('_kernel')}
    with mock.patch.multiple(module, **kernels):
        yield launches


def compiled(launch: Launch, capability: int) -> Resources:
    """Compile as at a launch on a GPU of this compute capability (80 for 8.0)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    kernel, options = launch.kernel, dict(launch.options)
    chosen = {name: options.pop(name) for name in _OPTIONS if name in options}
    bound = inspect.signature(kernel.fn).bind(*launch.args, **options).arguments
    free = set(kernel.do_not_specialize or ())
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        name, value = parameter.name, bound[parameter.name]
        if parameter.is_constexpr or value is None or (value is not True and isinstance(value, int)
                                                       and value == 1 and name not in free):
            signature[name], constants[name] = 'constexpr', value
        elif isinstance(value, Tensor):
            signature[name] = f'*{_TYPES[value.dtype]}'
            if value.data_ptr() % 16 == 0:
                attributes[i,] = [['tt.divisibility', 16]]
        elif isinstance(value, float):
            signature[name] = 'fp32'
        else:
            signature[name] = 'i32'
            if name not in free and value % 16 == 0:
                attributes[i,] = [['tt.divisibility', 16]]
    binary = triton.compile(ASTSource(kernel, signature, constants, attributes),
                            target=GPUTarget('cuda', capability, 32), options=chosen)
    tool = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin' / 'cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(binary.asm['cubin'])
        file.flush()
        report = subprocess.run([tool, '--dump-resource-usage', file.name], check=True, text=True,
                                capture_output=True).stdout
    found = {key: int(value) for key, value in re.findall(r'(REG|LOCAL|STACK):(\d+)', report)}
    return Resources(found['REG'], found['LOCAL'] + found['STACK'], binary.metadata.shared,
                     binary.asm['ptx'])


def add_norm_launches(channels: int, dtype: torch.dtype) -> list[Launch]:
    """Forward and backward of a residual stream of float32 and a branch of `dtype`."""
    from visattn_dense.ops.add_norm import triton_form, triton_kernels
    x, update = torch.empty(2, 40, channels), torch.empty(2, 40, channels, dtype=dtype)
    weight, scale = torch.empty(channels), torch.empty(2, 1, 1, dtype=dtype)
    with recorded(triton_kernels) as launches:
        total, normed, mean, inverse = triton_form._forward._init_fn(
            x, update, scale, weight, weight, 1e-6, dtype)
        triton_form._backward_op._init_fn(total, normed, total, scale, weight, mean, inverse,
                                          dtype)
    return launches


def depthwise_launches(channels: int, side: int, dtype: torch.dtype, *, stride: int = 1,
                       windowed: bool = False) -> list[Launch]:
    """Forward and both gradients; inside windows, of the values in q, k and v."""
    from visattn_dense.ops.depthwise import triton_form, triton_kernels
    x = torch.empty(2, 16, 16, 3 * channels, dtype=dtype)[..., -channels:]
    weight, window = torch.empty(channels, 1, side, side), [16, 7, 0, 2] if windowed else []
    with recorded(triton_kernels) as launches:
        out = triton_form._forward._init_fn(x, weight, weight, x if windowed else None, False,
                                            stride, window, 'none', dtype)
        triton_form._input_gradient._init_fn(out, x, weight, False, stride, window)
        triton_form._weight_gradient._init_fn(out, x, weight, stride, window)
    return launches


def linear_attention_launches(kind: str, heads: int, width: int,
                              dtype: torch.dtype) -> list[Launch]:
    """Forward and backward, of maps as the backbones have them."""
    from visattn_dense.ops.linear_attention import triton_form, triton_kernels
    matrix = position = scale = k = v = None
    cut = [1, 256, 0, 0]
    if kind == 'performer':
        q, k, v = (t[:, None, :, None] for t in torch.empty(2, 256, 3 * width, dtype=dtype).chunk(
            3, -1))
        matrix = torch.empty(width // 2, width)
    elif kind == 'relu':
        q = torch.empty(2, 1, 256, heads, 3, width, dtype=dtype).transpose(3, 4)
    else:
        q = torch.empty(2, 16, 16, 3, heads, width, dtype=dtype)
        position, scale, cut = torch.empty(256, heads * width), torch.empty(heads * width), [
            16, 16, 0, 0]
    with recorded(triton_kernels) as launches:
        inputs = q, k, v, matrix, position, scale
        out, sums, statistics = triton_form._forward._init_fn(*inputs, None, cut, 3., 1e-6, kind)
        triton_form._backward_op._init_fn(out, *inputs, sums, statistics, cut, 3., 1e-6, kind)
    return launches


def pointwise_launches(width: int, dtype: torch.dtype) -> list[Launch]:
    """Forward and both gradients, of 18 groups."""
    from visattn_dense.ops.pointwise import triton_form, triton_kernels
    x, weight = torch.empty(2, 8, 8, 18 * width, dtype=dtype), torch.empty(18 * width, width)
    with recorded(triton_kernels) as launches:
        out = triton_form._forward._init_fn(x, weight, 18, dtype)
        triton_form._input_gradient._init_fn(out, x, weight, 18)
        triton_form._weight_gradient._init_fn(out, x, weight, 18)
    return launches


LAUNCHES: dict[str, Callable[[], list[Launch]]] = {
    'add_norm, 64 channels, bfloat16': lambda: add_norm_launches(64, torch.bfloat16),
    'add_norm, 384 channels, bfloat16': lambda: add_norm_launches(384, torch.bfloat16),
    'add_norm, 1024 channels, float32': lambda: add_norm_launches(1024, torch.float32),
    'depthwise 3x3, windows, bfloat16': lambda: depthwise_launches(
        128, 3, torch.bfloat16, windowed=True),
    'depthwise 3x3, stride 2, bfloat16': lambda: depthwise_launches(
        192, 3, torch.bfloat16, stride=2),
    'depthwise 5x5, float32': lambda: depthwise_launches(96, 5, torch.float32),
    'grouped pointwise, 32 channels, bfloat16': lambda: pointwise_launches(32, torch.bfloat16),
    'grouped pointwise, 32 channels, float32': lambda: pointwise_launches(32, torch.float32),
    'relu, heads of 32, bfloat16': lambda: linear_attention_launches(
        'relu', 6, 32, torch.bfloat16),
    'performer, 64 channels, bfloat16': lambda: linear_attention_launches(
        'performer', 1, 64, torch.bfloat16),
    'performer, 64 channels, float32': lambda: linear_attention_launches(
        'performer', 1, 64, torch.float32),
    'focused, 128 channels, bfloat16': lambda: linear_attention_launches(
        'focused', 4, 32, torch.bfloat16),
    'focused, 96 channels, float32': lambda: linear_attention_launches(
        'focused', 4, 24, torch.float32),
}


if __name__ == '__main__':
    print('| operator | kernel | capability | registers | local | shared |')
    print('| --- | --- | --- | --- | --- | --- |')
    for name, launches in LAUNCHES.items():
        for launch in launches():
            for capability in (80, 90):
                needed = compiled(launch, capability)
                print(f'| {name} | {launch.kernel.fn.__name__} | {capability / 10} | '
                      f'{needed.registers} | {needed.local} | {needed.shared} |', flush=True)
