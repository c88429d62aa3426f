"""What a forward pass costs on a GPU that is not here: launches, bytes, FLOPs, counted on shapes.

The model runs on fake tensors of the device 'cuda': shapes, dtypes and the choice of each
operator's form are those of a GPU, and nothing is computed. Every operator that is no view is one
launch; linear attention starts three kernels or four. An operator reads its arguments and writes
its results once. It takes at least max(bytes / bandwidth, FLOPs / rate); the sum of these times is
the floor of the pass.
Backward is not counted: autograd needs a real GPU for tensors on 'cuda'.

What the count cannot see: convolutions that cuDNN splits into several launches, the workspace that
a library fills, and what an operator of torch does apart from its main kernel, but for what
`_kernels` knows. `host` counts the launches of torch itself.
"""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import flop_registry

from visattn_dense.errors import UserError

from . import subjects
from .flops import formulas
from .options import Size

# One H200, measured: an 8192³ product in bfloat16, and a copy (torch 2.11, 26 November 2026).
FLOPS_PER_S, BYTES_PER_S = 751e12, 4.08e12
BATCHES = {Size(512, 512): 16, Size(1024, 1024): 4, Size(2048, 2048): 1}
"""The sizes of a plan, with about the same number of pixels each."""

# Operators without a kernel: they make tensors, or give another view of one.
_NO_LAUNCH = {'aten::_unsafe_view', 'aten::empty', 'aten::empty_like', 'aten::new_empty',
              'aten::empty_strided', 'aten::new_empty_strided', 'aten::lift_fresh'}


class Cost(NamedTuple):
    """What a pass takes.

    Attributes:
        launches: kernels.
        bytes: read and written by all kernels.
        flops: of products, convolutions and attention.
        floor_ms: the sum of every operator's least time on the H200 of this module.
    """
    launches: int
    bytes: int
    flops: int
    floor_ms: float


@dataclass
class _Counting(TorchDispatchMode):
    """Counts what the operators inside the block cost."""
    launches: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    flops: int = 0
    seconds: float = 0.

    def __post_init__(self) -> None:
        super().__init__()
        self._own = formulas()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = operator(*args, **kwargs)
        name = operator._schema.name
        in_place = name.startswith('aten::_foreach')            # which returns nothing
        if not in_place and not any(isinstance(leaf, Tensor) for leaf in tree_leaves(out)):
            return out
        is_view = any(value.alias_info is not None and not value.alias_info.is_write
                      for value in operator._schema.returns)
        if is_view or name in _NO_LAUNCH or name.startswith('prim'):
            return out
        if name == 'aten::convolution' and _is_channels_last(args[0]):
            # cuDNN keeps the layout; a fake convolution does not know cuDNN.
            out = out.contiguous(memory_format=torch.channels_last)
        self.launches[name] += _kernels(name, args)
        moved = sum(map(_bytes, tree_leaves((args, kwargs, out))))
        flops = self._flops(operator.overloadpacket, args, kwargs, out)
        self.bytes += moved
        self.flops += flops
        self.seconds += max(moved / BYTES_PER_S, flops / FLOPS_PER_S)
        return out

    def _flops(self, operator: Any, args: tuple, kwargs: dict, out: Any) -> int:
        if operator in self._own:
            args, kwargs, out = tree_map(lambda leaf: getattr(leaf, 'shape', leaf),
                                         (args, kwargs, out))
            return self._own[operator](*args, **kwargs, out_shape=out)
        return flop_registry[operator](*args, **kwargs, out_val=out) if (
            operator in flop_registry) else 0


def _kernels(name: str, args: tuple) -> int:
    """How many kernels the operator starts."""
    if name == 'visattn::linear_attention_triton':      # norms of focused features; S, z; sum; out
        return 4 if args[-1] == 'focused' else 3
    if name == 'aten::convolution' and args[2] is not None:
        return 2                                        # torch adds the bias apart
    if name == 'aten::native_batch_norm' and not args[5]:
        return 2                                        # 1 / √(σ² + ε) apart
    if name == 'aten::im2col':                          # one for each image
        return len(args[0])
    return 1


def _is_channels_last(x: Tensor) -> bool:
    return x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)


def _bytes(leaf: Any) -> int:
    """Of a tensor, each number once: an expanded dimension holds no numbers of its own."""
    if not isinstance(leaf, Tensor):
        return 0
    sides = zip(leaf.shape, leaf.stride(), strict=True)
    return leaf.itemsize * math.prod(side if stride else min(side, 1) for side, stride in sides)


class _Fused(TorchFunctionMode):
    """Takes torch's attention and interpolation for one operator each, as they are on a GPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is nn.functional.scaled_dot_product_attention:
            query, key, value = args[:3]
            return torch.ops.aten._scaled_dot_product_flash_attention(
                query, key, value, scale=(kwargs or {}).get('scale'))[0]
        if function is nn.functional.interpolate and args[0].device.type == 'cuda':
            size = args[1] if len(args) > 1 else kwargs['size']
            return args[0].new_empty(*args[0].shape[:2], *size).add_(0)
        return function(*args, **(kwargs or {}))


@contextmanager
def _fake_gpu(dtype: torch.dtype) -> Iterator[FakeTensorMode]:
    """Fake tensors, on a device with autocast to `dtype`, whether or not there is a GPU."""
    before = torch.is_autocast_enabled('cuda'), torch.get_autocast_dtype('cuda')
    torch.set_autocast_enabled('cuda', dtype != torch.float32)
    torch.set_autocast_dtype('cuda', dtype)
    try:
        with FakeTensorMode() as mode:
            yield mode
    finally:
        torch.set_autocast_enabled('cuda', before[0])
        torch.set_autocast_dtype('cuda', before[1])


def _put_on_gpu(module: nn.Module) -> None:
    """Give a module fake tensors on 'cuda'; called inside `_fake_gpu`."""
    def fake(tensor: Tensor) -> Tensor:
        return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype,
                                   device='cuda')

    for part in module.modules():
        for name, tensor in part._parameters.items():
            if tensor is not None:
                part._parameters[name] = nn.Parameter(fake(tensor), tensor.requires_grad)
        for name, tensor in part._buffers.items():
            if tensor is not None:
                part._buffers[name] = fake(tensor)


def cost(make: Callable[[], nn.Module], batch: int, size: Size,
         dtype: torch.dtype = torch.bfloat16) -> Cost:
    """The cost of a forward pass of a backbone in evaluation mode.

    Args:
        make: builds the backbone.
        batch, size: of the images.
        dtype: of autocast; float32 for none.
    """
    counting = counted(make, batch, size, dtype)
    return Cost(counting.launches.total(), counting.bytes, counting.flops, 1e3 * counting.seconds)


def counted(make: Callable[[], nn.Module], batch: int, size: Size,
            dtype: torch.dtype = torch.bfloat16) -> _Counting:
    """Like `cost`, with the launches of each operator by name."""
    counting = _Counting()
    run_on_shapes(make, batch, size, dtype, counting)
    return counting


def run_on_shapes(make: Callable[[], nn.Module], batch: int, size: Size, dtype: torch.dtype,
                  watching: TorchDispatchMode) -> None:
    """A forward pass of a backbone on fake tensors of a GPU; `watching` sees its operators.

    The other arguments are those of `cost`.

    Raises:
        UserError: torch asks a GPU here, although the tensors are fake, and there is none.
    """
    module = make().eval()
    try:
        with _fake_gpu(dtype), torch.no_grad():
            _put_on_gpu(module)
            x = torch.empty(batch, 3, *size, device='cuda')
            with _Fused(), watching:
                module(x)
    except RuntimeError as error:
        if 'CUDA driver' not in str(error):
            raise
        raise UserError(f'torch {torch.__version__} asks a GPU also where no number is computed, '
                        'and there is none (torch 2.6 does so, torch 2.15 does not). Install a '
                        'newer torch, or count where there is a GPU') from error


def table(names: list[str], sizes: dict[Size, int] = BATCHES) -> Iterator[str]:
    """Rows of a Markdown table, one for each backbone and size.

    Args:
        names: the backbones, such as 'CSWin:small'.
        sizes: image sizes, with the batch of each.

    Yields:
        The rows, as they become known.
    """
    yield '| backbone | size | batch | launches | GB | TFLOP | floor, ms |'
    yield '| --- | --- | --- | --- | --- | --- | --- |'
    for name in names:
        subject = subjects.backbone(name)
        for size, batch in sizes.items():
            found = cost(subject.make, batch, size)
            yield (f'| {subject.name} | {size} | {batch} | {found.launches} | '
                   f'{found.bytes / 1e9:.1f} | {found.flops / 1e12:.2f} | {found.floor_ms:.2f} |')
