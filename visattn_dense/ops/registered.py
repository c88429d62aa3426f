"""Operators of torch, `torch.ops.visattn...`, that a call reaches directly where nothing watches.

torch.compile, exports, profilers and modes of torch (fake tensors, counters) have to see each call
of an operator, so each is registered with torch. A call through torch's dispatcher takes ten to
thirty microseconds more on the host than a call of the function. A GPU computes small layers in
less time. So other calls go past the dispatcher.
"""
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import _get_current_dispatch_mode

_PLAIN = frozenset((Tensor, nn.Parameter, type(None), int, float, bool, str, list, torch.dtype))
"""The types of arguments of a direct call. Other classes of tensors hear of operators by the
dispatcher."""


def is_traced() -> bool:
    """Whether a tracer, a transform, a profiler or a mode of torch has to see each operator."""
    return _is_reinterpreted() or torch.autograd._profiler_enabled()


def _is_reinterpreted() -> bool:
    """Whether a tracer, a transform or a mode of torch may do something else than compute: a kernel
    that changes its arguments must not be launched."""
    return (torch.compiler.is_compiling() or torch.jit.is_tracing()
            or _get_current_dispatch_mode() is not None or forward_ad._current_level >= 0
            or torch._C._are_functorch_transforms_active())


def why_not_direct(*tensors: Tensor | None) -> str | None:
    """Why a kernel that is no operator of torch cannot take these tensors, or None."""
    if _is_reinterpreted() or not _are_plain(tensors):
        return "a tracer, a transform or a mode of torch needs torch's own operators"
    return None


def why_not_transformed() -> str | None:
    """Why an operator of this project cannot be called here, or None: torch.func has no rule for
    it."""
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():
        return 'torch.func transforms the call'
    return None


def is_batched(t: Tensor) -> bool:
    """Whether a transform of torch computes with many such tensors at once, or autograd batches
    gradients with them (is_grads_batched): the tensor then has no layout of its own."""
    return (torch._C._are_functorch_transforms_active()
            or torch._C._functorch.is_legacy_batchedtensor(t))


class Registered:
    """A function as an operator of torch.

    Args:
        name: 'visattn::...'.
        function: changes no argument, and no result is a part of an argument. Its arguments are
            tensors, lists of tensors, None and values.
        schema: the arguments and results in torch's words; None to take them from the annotations,
            if no argument is a list of tensors.
    """

    def __init__(self, name: str, function: Callable[..., Any], schema: str | None) -> None:
        self._function = function
        self._registered = torch.library.custom_op(name, function, mutates_args=(), schema=schema)
        self._takes_lists = schema is not None and 'Tensor[]' in schema.partition('->')[0]
        self._apply: Callable[..., Any] | None = None

    def register_fake(self, fake: Callable[..., Any]) -> Callable[..., Any]:
        """Say what `function` would give for tensors without numbers."""
        return self._registered.register_fake(fake)

    def register_autograd(self, backward: Callable[..., Any], *,
                          setup_context: Callable[..., None]) -> None:
        """The gradient, as for `torch.library.register_autograd`.

        `backward` calls another operator, which has no gradient: so a gradient of the gradient is
        an error of torch. `ctx.needs_input_grad` is for operators without lists of tensors. A
        result without a gradient gives None, not a tensor of zeros; one at least has a gradient.
        """
        def set_up(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            setup_context(ctx, inputs, output)
            ctx.set_materialize_grads(False)
            ctx.nothing = (None,) * len(inputs) if not self._takes_lists else tuple([
                [None] * len(each) if _is_list(each) else None for each in inputs])

        def go_back(ctx: Any, *grads: Tensor | None) -> Sequence[Any]:
            return backward(ctx, *grads) if any(g is not None for g in grads) else ctx.nothing

        self._registered.register_autograd(go_back, setup_context=set_up)
        self._apply = _gradient(self._function, go_back, set_up, self._takes_lists)

    def __call__(self, *args: Any) -> Any:
        if is_traced() or not _are_plain(args):
            return self._registered(*args)
        if not torch.is_grad_enabled() or not _need_gradient(args):
            return self._function(*args)
        return self._registered(*args) if self._apply is None else self._apply(*args)


def registered(name: str, schema: str | None = None) -> Callable[[Callable[..., Any]], Registered]:
    """A decorator: the function as an operator of torch. See `Registered`."""
    return lambda function: Registered(name, function, schema)


def _are_plain(args: Sequence[Any]) -> bool:
    """Whether a direct call can read the memory of all tensors."""
    for arg in args:
        kind = type(arg)
        if kind is Tensor:
            # Autograd batches gradients with tensors of this class (is_grads_batched).
            if torch._C._functorch.is_legacy_batchedtensor(arg):
                return False
        elif kind not in _PLAIN or (kind is list and not _are_plain(arg)):
            return False
    return True


def _is_list(arg: Any) -> bool:
    """Whether an argument is a list of tensors, or an empty list."""
    return type(arg) is list and (not arg or isinstance(arg[0], Tensor))


def _need_gradient(args: Sequence[Any]) -> bool:
    for arg in args:
        if arg.requires_grad if isinstance(arg, Tensor) else (
                type(arg) is list and _need_gradient(arg)):
            return True
    return False


def _gradient(function: Callable[..., Any], backward: Callable[..., Any],
              setup_context: Callable[..., None], takes_lists: bool) -> Callable[..., Any]:
    """The function with its gradient, for autograd alone.

    `takes_lists`: whether an argument is a list of tensors.
    """

    class Gradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            output = function(*args)
            setup_context(ctx, args, output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Sequence[Tensor | None]:
            return backward(ctx, *grads)

    class GradientOfLists(torch.autograd.Function):
        # Autograd finds no tensors in lists. So lists of tensors come item by item. The first item
        # holds the place of each list among the arguments, and its length.
        @staticmethod
        def forward(ctx: Any, lists: dict[int, int], *items: Any) -> Any:
            args = list(items)
            for place, length in lists.items():
                args[place:place + length] = [args[place:place + length]]
            ctx.lists = lists
            return Gradient.forward(ctx, *args)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
            return None, *(item for place, grad in enumerate(backward(ctx, *grads))
                           for item in ((grad or ()) if place in ctx.lists else (grad,)))

    def apply(*args: Any) -> Any:
        lists = {place: len(arg) for place, arg in enumerate(args) if _is_list(arg)}
        return GradientOfLists.apply(lists, *(item for place, arg in enumerate(args)
                                              for item in (arg if place in lists else (arg,))))

    return apply if takes_lists else Gradient.apply
