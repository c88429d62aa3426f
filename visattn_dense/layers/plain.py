"""Whether a call of a module is its own forward: then an operator may take its place."""
from torch import nn
from torch.nn.modules import module as _all


def is_called_plainly(module: nn.Module) -> bool:
    """Whether a call is the forward of the module's class: no hook, no other forward set by hand.

    False too if torch.compile has compiled the module.
    """
    return not (any(_HOOKS_OF_ALL) or module._forward_hooks or module._forward_pre_hooks
                or module._backward_hooks or module._backward_pre_hooks
                or module._compiled_call_impl is not None
                or 'forward' in module.__dict__)      # vars() breaks a graph of torch 2.6


# The hooks of all modules, such as `register_module_forward_hook` adds.
_HOOKS_OF_ALL = (_all._global_forward_hooks, _all._global_forward_pre_hooks,
                 _all._global_backward_hooks, _all._global_backward_pre_hooks)
