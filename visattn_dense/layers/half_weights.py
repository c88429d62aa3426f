"""Inside autocast: cast the weights of several blocks in one launch, instead of one for each."""
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from visattn_dense.ops import UsesOperators
from visattn_dense.ops.precision import autocast_dtype


class _Cast(torch.autograd.Function):
    """Casts tensors to a dtype. Backward casts all gradients in one launch too."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [t.dtype for t in tensors]
        ctx.set_materialize_grads(False)
        return tuple(_copies(tensors, [dtype] * len(tensors)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():                      # a gradient of the gradient may follow
            return None, *(grad if grad is None else grad.to(dtype)
                           for grad, dtype in zip(grads, ctx.dtypes, strict=True))
        at = [i for i, grad in enumerate(grads) if grad is not None]
        found: list[Tensor | None] = [None] * len(grads)
        for i, grad in zip(at, _copies([grads[i] for i in at], [ctx.dtypes[i] for i in at]),
                           strict=True):
            found[i] = grad
        return None, *found


def _copies(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    copies = [torch.empty_like(t, dtype=dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies


def half_weights(blocks: Sequence[nn.Module], x: Tensor) -> AbstractContextManager[None]:
    """While the blocks run inside autocast, their linear layers and convolutions have cast weights.

    Autocast would cast each weight and each bias with a kernel of its own: most of the launches of
    a small block. The values and the gradients are the same. Layers whose operators take float32
    weights (`UsesOperators`) keep them. Outside autocast, and while torch.compile traces (its
    kernels cast as they read), nothing happens. A block that turns autocast off for one of its
    layers casts the layer's weight itself: `F.linear(x, layer.weight.float())`.

    Args:
        blocks: whose layers cast; the cast lasts for one call of each.
        x: the input, for the device and the dtype of autocast.
    """
    # torch 2.6 cannot trace a context of contextlib's other than nullcontext.
    if torch.compiler.is_compiling() or any(block._compiled_call_impl is not None
                                            for block in blocks):
        return nullcontext()
    dtype = autocast_dtype(x)
    return nullcontext() if dtype is None else _cast_weights(blocks, dtype)


@contextmanager
def _cast_weights(blocks: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """While the block runs, the layers of `blocks` have cast weights."""
    named = [(layer.__dict__, name, weight) for block in blocks
             for layer in _casting(block) for name, weight in layer._parameters.items()
             if _is_plain(weight) and weight.dtype == torch.float32]
    # Frozen weights stay out of the graph.
    trains = torch.is_grad_enabled()
    try:
        _hide([each for each in named if trains and each[2].requires_grad], dtype, _Cast.apply)
        _hide([each for each in named if not (trains and each[2].requires_grad)], dtype,
              lambda dtype, *weights: _copies(weights, [dtype] * len(weights)))
        yield
    finally:
        for layer, name, _ in named:
            layer.pop(name, None)


def _hide(named: list[tuple[dict[str, Any], str, Tensor]], dtype: torch.dtype,
          cast: Callable[..., Sequence[Tensor]]) -> None:
    # An attribute of the instance hides the parameter of that name. Another thread that runs the
    # same block may take the attribute away: then autocast casts the parameter, to the same values.
    if named:
        for (layer, name, _), copy in zip(named, cast(dtype, *(weight for *_, weight in named)),
                                          strict=True):
            layer[name] = copy


def _casting(block: nn.Module) -> Iterator[nn.Module]:
    """The layers of a block that autocast casts. To find them takes longer on the host than to
    cast, so the list is kept. A layer that has taken the place of another casts its own weight."""
    layers = _layers.get(block)
    if layers is None:
        layers = _layers[block] = [
            ref(layer) for layer in block.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))
            and not isinstance(layer, UsesOperators)]
    return (layer for each in layers if (layer := each()) is not None)


_layers: WeakKeyDictionary[nn.Module, list[ref]] = WeakKeyDictionary()


def _is_plain(weight: Tensor | None) -> bool:
    return type(weight) is nn.Parameter or (
        isinstance(weight, nn.Parameter) and not is_traceable_wrapper_subclass(weight))
