"""What the Triton kernels take of a GPU: registers, spills, shared memory, loads and instructions,
without a GPU.

    python -m benchmarks.registers                      # all kernels, capabilities 8.0 and 9.0
    python -m benchmarks.registers --only window --dtype float32

Each case calls an operator, forward and backward, on tensors of a shape that a backbone has, and
collects the launches (`visattn_dense.ops.launching.recorded`). Triton then compiles each distinct
kernel as its launch would, ptxas, the assembler, reports what the kernel takes, and nvdisasm lists
its instructions. To add kernels, add their case to CASES.
"""
from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from visattn_dense.ops.launching import DTYPES, RecordedLaunch, recorded

CAPABILITIES = 80, 90
"""Compute capabilities, times ten."""


class Usage(NamedTuple):
    """What one program of a kernel takes.

    Attributes:
        registers: of one thread; 255 at most.
        spills: bytes that a thread stores to and loads from memory because registers are few.
        stack: bytes of a thread's local memory; spilled registers are there too.
        shared: bytes of shared memory of the program.
        warps: of the program.
        matrix_units: whether the products use them.
        loads: bytes that one thread loads from global memory at once -> how many loads do so.
        instructions: of the whole kernel.
        loops: instructions of each loop of the kernel, in order.
        spills_in_loops: how many of these instructions store or load a spilled register.
    """
    registers: int
    spills: int
    stack: int
    shared: int
    warps: int
    matrix_units: bool
    loads: Counter[int]
    instructions: int
    loops: list[int]
    spills_in_loops: int


def compile_launch(launch: RecordedLaunch, capability: int) -> Usage:
    """Compile a kernel as the launch would on a GPU of this compute capability.

    Raises:
        RuntimeError: ptxas refuses the kernel. Triton's own errors pass through.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    signature, constants, divisible = {}, dict(launch.constants), []
    options = {name: constants.pop(name) for name in (
        'num_warps', 'num_stages', 'maxnreg', 'enable_fp_fusion') if name in constants}
    if capability // 10 == 10:
        options.pop('maxnreg', None)         # as the launch has it on such a GPU
    given = dict(zip(launch.kernel.arg_names, launch.args, strict=False))
    for place, parameter in enumerate(launch.kernel.params):
        name, value = parameter.name, given.get(parameter.name)
        if name in constants:
            signature[name] = 'constexpr'
        elif value is None or (type(value) is int and value == 1
                               and not parameter.do_not_specialize):
            signature[name], constants[name] = 'constexpr', value
        else:
            signature[name] = _kind(value)
            if (value.data_ptr() % 16 == 0 if isinstance(value, Tensor) else
                    type(value) is int and value % 16 == 0 and not parameter.do_not_specialize):
                divisible.append(place)
    source = ASTSource(launch.kernel, signature, constants, _divisible_by_16(divisible))
    binary = triton.compile(source, target=GPUTarget('cuda', capability, 32), options=options)
    ptx = binary.asm['ptx']
    report, code = assembled(ptx)
    spills = re.search(r'(\d+) bytes spill stores, (\d+) bytes spill loads', report)
    return Usage(int(re.search(r'Used (\d+) registers', report)[1]), sum(map(int, spills.groups())),
                 int(re.search(r'(\d+) bytes stack frame', report)[1]), binary.metadata.shared,
                 binary.metadata.num_warps, 'mma' in ptx, loads(ptx), *counted(code))


def _divisible_by_16(places: list[int]) -> Any:
    """What Triton's compiler is told of the arguments at these places."""
    try:
        from triton.backends.compiler import AttrsDescriptor  # Triton 3.2
    except ImportError:
        return {(place,): [['tt.divisibility', 16]] for place in places}
    return AttrsDescriptor.from_hints(dict.fromkeys(places, 16))


def _kind(value: object) -> str:
    """Triton's name of the type of an argument."""
    kinds = {torch.float32: 'fp32', torch.float16: 'fp16', torch.bfloat16: 'bf16',
             torch.int32: 'i32', torch.int64: 'i64'}
    if isinstance(value, Tensor):
        return f'*{kinds[value.dtype]}'
    return 'fp32' if isinstance(value, float) else 'i32' if value < 2**31 else 'i64'


def assembled(ptx: str) -> tuple[str, str]:
    """The report of Triton's ptxas, and the machine code as nvdisasm writes it.

    Raises:
        RuntimeError: ptxas refuses the kernel.
    """
    import triton
    folder = Path(triton.__file__).parent / 'backends' / 'nvidia' / 'bin'
    target = re.search(r'^\.target (\S+)', ptx, re.M)[1].split(',')[0]
    with tempfile.TemporaryDirectory() as where:
        source, result = Path(where, 'kernel.ptx'), Path(where, 'kernel.cubin')
        source.write_text(ptx)
        # Triton may bring an older and a newer assembler; only the newer reads new PTX.
        for assembler in sorted(folder.glob('ptxas*')):
            run = subprocess.run([assembler, '-v', f'--gpu-name={target}', source, '-o', result],
                                 capture_output=True, text=True)
            if run.returncode == 0:
                break
        if run.returncode:
            raise RuntimeError(f'ptxas refuses the kernel: {run.stderr.strip()}')
        code = subprocess.run([folder / 'nvdisasm', '-c', result], capture_output=True, text=True,
                              check=True).stdout
    return run.stderr, code


def loads(ptx: str) -> Counter[int]:
    """How many bytes one thread loads from global memory at once -> how many loads do so."""
    to_registers = re.findall(r'ld\.global\S*?(?:\.v(\d))?\.b(\d+)\b', ptx)
    to_shared = re.findall(r'cp\.async\.c[ag]\.shared\.global\S* .*?\], (0x\w+|\d+)', ptx)
    return Counter([int(many or 1) * int(bits) // 8 for many, bits in to_registers]
                   + [int(size, 0) for size in to_shared])


def counted(code: str) -> tuple[int, list[int], int]:
    """How many instructions nvdisasm lists, those of each loop, and the spills in loops.

    A loop begins at a label and ends with the branch back.
    """
    labels, loops, is_spill = {}, [], []
    for line in code.splitlines():
        if label := re.match(r'(\.L_x_\d+):', line):
            labels[label[1]] = len(is_spill)
        elif instruction := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(\S.*)', line):
            is_spill.append(re.search(r'\b(LDL|STL)\b', instruction[1]) is not None)
            back = re.search(r'\bBRA\b.*(\.L_x_\d+)', instruction[1])
            begin = labels.get(back[1]) if back else None
            # A kernel ends with a branch to itself.
            if begin is not None and len(is_spill) - begin > 1:
                loops.append(is_spill[begin:])
    return len(is_spill), [len(loop) for loop in loops], sum(map(sum, loops))


# The cases.

def windows(dtype: torch.dtype, head_dim: int) -> Tensor:
    """Stripes of both directions with LePE, as in CSWin's third stage."""
    from visattn_dense.ops.group_attention import triton_form
    qkv = torch.empty(1, 32, 32, 3, 2 * head_dim, dtype=dtype, requires_grad=True)
    kernels = [torch.empty(head_dim, 1, 3, 3, requires_grad=True) for _ in range(2)]
    biases = [torch.empty(head_dim, requires_grad=True) for _ in range(2)]
    return triton_form.window_attention(qkv, [(32, 7), (7, 32)], num_heads=2, kernels=kernels,
                                        biases=biases)


def whole_maps(dtype: torch.dtype, head_dim: int) -> Tensor:
    """All tokens attend to all, as in T2T-ViT."""
    from visattn_dense.ops.group_attention import triton_form
    q, k, v = (torch.empty(1, 1025, 2 * head_dim, dtype=dtype, requires_grad=True)
               for _ in range(3))
    return triton_form.full_attention(q, k, v, num_heads=2)


def regions(dtype: torch.dtype, head_dim: int, *, side: int = 64, listed: int = 4,
            weighted: bool = False) -> Tensor:
    """Routed regions of a map of side², as in BiFormer."""
    from visattn_dense.ops.group_attention import triton_form
    q, k, v = (torch.empty(1, side, side, 2 * head_dim, dtype=dtype, requires_grad=True)
               for _ in range(3))
    weight = torch.empty(1, 64, listed, requires_grad=True) if weighted else None
    return triton_form.region_attention(
        q, k, v, torch.arange(listed).expand(1, 64, listed), num_heads=2, n_win=8, scale=1.,
        weight=weight)


def residual_norm(dtype: torch.dtype, head_dim: int) -> tuple[Tensor, Tensor]:
    """A float32 stream, a branch of `dtype` and six heads, as in T2T-ViT."""
    from visattn_dense.ops.add_norm import triton_form
    channels = 6 * head_dim
    x = torch.empty(2, 40, channels, requires_grad=True)
    update = torch.empty(2, 40, channels, dtype=dtype, requires_grad=True)
    weight = torch.empty(channels, requires_grad=True)
    return triton_form.add_norm(x, update, weight, weight, eps=1e-6, dtype=dtype,
                                scale=torch.empty(2, 1, 1, dtype=dtype))


def perceptron(dtype: torch.dtype, head_dim: int) -> Tensor:
    """Six heads and four times as many channels between the layers, as in CSWin."""
    from visattn_dense.ops.linear import triton_form
    inside, between = 6 * head_dim, 24 * head_dim
    shapes = (2, 40, inside), (between, inside), (between,), (inside, between), (inside,)
    return triton_form.mlp(*(torch.empty(*shape, dtype=dtype, requires_grad=True)
                             for shape in shapes))


def depthwise(dtype: torch.dtype, head_dim: int, *, side: int, stride: int = 1,
              windowed: bool = False) -> Tensor:
    """Four heads; inside windows, of the values in q, k and v and added to a map, as LePE."""
    from visattn_dense.ops.depthwise import triton_form
    channels = 4 * head_dim
    qkv = torch.empty(2, 16, 16, 3 * channels, dtype=dtype, requires_grad=True)
    x = qkv[..., -channels:]
    weight = torch.empty(channels, 1, side, side, requires_grad=True)
    return triton_form.depthwise(x, weight, torch.empty(channels), stride=stride,
                                 onto=x if windowed else None, window=(16, 7) if windowed else None)


def grouped_pointwise(dtype: torch.dtype, head_dim: int) -> Tensor:
    """18 groups, as in EfficientViT-B2's third stage."""
    from visattn_dense.ops.pointwise import triton_form
    x = torch.empty(2, 8, 8, 18 * head_dim, dtype=dtype, requires_grad=True)
    weight = torch.empty(18 * head_dim, head_dim, 1, 1, requires_grad=True)
    return triton_form.grouped_pointwise(x, weight, groups=18)


def relu_linear(dtype: torch.dtype, head_dim: int) -> Tensor:
    """Two sets of six heads, as in EfficientViT-B2's third stage."""
    from visattn_dense.ops.linear_attention import triton_form
    sets = [torch.empty(2, 16 * 16, 6, 3, head_dim, dtype=dtype) for _ in range(2)]
    return triton_form.relu_attention(
        *(qkv.permute(0, 2, 3, 4, 1).requires_grad_() for qkv in sets), epsilon=1e-6)


def performer(dtype: torch.dtype, head_dim: int) -> Tensor:
    """One head and half as many features, as in T2T-ViT."""
    from visattn_dense.ops.linear_attention import triton_form
    q, k, v = torch.empty(2, 256, 3 * head_dim, dtype=dtype, requires_grad=True).chunk(3, -1)
    return triton_form.performer_attention(q, k, v, torch.empty(head_dim // 2, head_dim),
                                           epsilon=1e-6)


def focused(dtype: torch.dtype, head_dim: int) -> Tensor:
    """Four heads over the whole map, as in FLatten-CSWin's second stage."""
    from visattn_dense.ops.linear_attention import triton_form
    channels = 4 * head_dim
    qkv = torch.empty(2, 16, 16, 3, channels, dtype=dtype, requires_grad=True)
    learned = [torch.empty(shape, requires_grad=True) for shape in (
        (1, 256, channels), (1, 1, channels), (channels, 1, 5, 5), (channels,))]
    position, scale, kernel, bias = learned
    return triton_form.focused_attention(
        qkv, (16, 16), num_heads=4, position=position, scale=scale, power=3., epsilon=1e-6,
        kernel=kernel, bias=bias)


def norm_and_activation(dtype: torch.dtype, head_dim: int, *, trains: bool = False,
                        norm: bool = True) -> Tensor:
    """After the expansion of a mobile block."""
    from visattn_dense.ops.norm_act import Norm, TrainingNorm, triton_form
    channels = 6 * head_dim
    x = torch.empty(2, channels, 16, 16, dtype=dtype, requires_grad=trains).contiguous(
        memory_format=torch.channels_last)
    mean, variance, weight, bias = (torch.empty(channels) for _ in range(4))
    known = TrainingNorm(mean, variance, weight, torch.zeros((), dtype=torch.int64), .1, 1e-5) if (
        trains) else Norm(mean, variance, weight, 1e-5)
    return triton_form.norm_act(x, bias, known if norm else None, activation='hardswish')


def routing(dtype: torch.dtype, head_dim: int) -> Tensor:
    """64 regions, as in BiFormer's third stage."""
    from visattn_dense.ops.routing import triton_form
    q, k = torch.empty(2, 64, 2 * 8 * head_dim, dtype=dtype).chunk(2, -1)
    return triton_form.top_regions(q, k, count=16, scale=1.)[0]


CASES: dict[str, Callable[[torch.dtype, int], Tensor | tuple[Tensor, ...]]] = {
    'windows': windows, 'whole maps': whole_maps, 'regions': regions,
    'small regions': partial(regions, side=32, listed=16),
    'weighted regions': partial(regions, weighted=True), 'residual norm': residual_norm,
    'perceptron': perceptron,
    'depthwise 3x3 in windows': partial(depthwise, side=3, windowed=True),
    'depthwise 3x3, stride 2': partial(depthwise, side=3, stride=2),
    'depthwise 5x5': partial(depthwise, side=5), 'grouped pointwise': grouped_pointwise,
    'ReLU attention': relu_linear, 'performer': performer, 'focused attention': focused,
    'norm and activation': norm_and_activation,
    'norm and activation, training': partial(norm_and_activation, trains=True),
    'bias and activation, training': partial(norm_and_activation, trains=True, norm=False),
    'routing': routing}
"""Name -> function of a dtype and a head dim that gives the results of an operator. The tensors are
on the CPU. Results with a gradient are differentiated, and the launches of all passes are
compiled."""


def launches(case: str, dtype: torch.dtype, head_dim: int) -> list[RecordedLaunch]:
    """The distinct launches of a case, forward and backward, in order."""
    with recorded() as found:
        out = CASES[case](dtype, head_dim)
        outs = (out,) if isinstance(out, Tensor) else out
        if outs[0].requires_grad:
            torch.autograd.backward(outs, [torch.empty_like(each) for each in outs])
    distinct = {(each.kernel.__name__, *sorted(each.constants.items())): each for each in found}
    return list(distinct.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--only', default='', help='cases whose name has this text')
    parser.add_argument('--dtype', default='bfloat16',
                        choices=[str(dtype).removeprefix('torch.') for dtype in DTYPES])
    parser.add_argument('--head-dim', type=int, nargs='+', default=[32, 64])
    parser.add_argument('--capability', type=int, nargs='+', default=CAPABILITIES)
    options = parser.parse_args()
    print('| case | head dim | kernel | tile | capability | warps | registers | spilled bytes '
          '| shared bytes | matrix units | loads: bytes × many | instructions (of each loop) |\n|'
          + '---|' * 12)
    for case in CASES:
        if options.only not in case:
            continue
        for head_dim in options.head_dim:
            for each in launches(case, getattr(torch, options.dtype), head_dim):
                tile = '×'.join(str(each.constants[name]) for name in ('BLOCK', 'SLOTS', 'TOKENS')
                                if name in each.constants)
                for capability in options.capability:
                    usage = compile_launch(each, capability)
                    widths = ', '.join(f'{size} × {many}'
                                       for size, many in sorted(usage.loads.items()))
                    print(f'| {case} | {head_dim} | {each.kernel.__name__} | {tile} | '
                          f'{capability / 10} | {usage.warps} | {usage.registers} | {usage.spills} '
                          f'| {usage.shared} | {"yes" if usage.matrix_units else "no"} '
                          f'| {widths} | {usage.instructions} '
                          f'({", ".join(map(str, usage.loops)) or "none"}) |',
                          flush=True)


if __name__ == '__main__':
    sys.exit(main())
