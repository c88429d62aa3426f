"""Whether an operator may take the place of a module: where it would gain, and nothing watches."""
import torch
from torch import Tensor, nn
from torch.nn.modules import module as _all
from torch.nn.utils.prune import BasePruningMethod

from visattn_dense.ops.launching import DEVICES


def gains_by_operators(x: Tensor) -> bool:
    """Whether x is on a device of the Triton kernels, and no tracer has to see modules of torch."""
    # torch.fx traces with other objects.
    return (isinstance(x, Tensor) and x.device.type in DEVICES
            and not torch.compiler.is_compiling() and not torch.jit.is_tracing())


def is_called_plainly(module: nn.Module) -> bool:
    """Whether a call is the forward of the module's class: no hook, no other forward set by hand.

    False too if torch.compile has compiled the module.
    """
    return not (any(HOOKS_OF_ALL) or module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks
                or module._compiled_call_impl is not None
                or 'forward' in module.__dict__)      # vars() breaks a graph of torch 2.6


def parameters_of(layer: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a layer that is not called.

    The weight of a pruned layer is put together by a hook of torch before each call.
    """
    for hook in layer._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            hook(layer, ())
    return layer.weight, layer.bias


# The hooks of all modules, such as `register_module_forward_hook` adds.
HOOKS_OF_ALL = (_all._global_forward_hooks, _all._global_forward_pre_hooks,
                 _all._global_backward_hooks, _all._global_backward_pre_hooks)
