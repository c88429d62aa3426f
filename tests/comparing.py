"""Comparisons of a fast form with a naive form, and of data with changed data."""
import copy
from typing import Any

import torch
from torch import Tensor, nn


def outputs_and_gradients(module: nn.Module, x: Tensor, *,
                          allow_unused: bool = False) -> list[Tensor]:
    """Output, and the gradients of input and parameters, of a fixed scalar of the output.

    With `allow_unused`, what takes no part in the output has a gradient of zeros.
    """
    x = x.clone().requires_grad_()
    out = module(x)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), [x, *module.parameters()],
                                allow_unused=allow_unused, materialize_grads=allow_unused)
    return [out, *grads]


def assert_same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    """Equal outputs, and equal gradients of a random scalar for each input, none of them zero."""
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad((out * pull).sum(), inputs) for out in (found, expected)),
                    strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)


def put(data: Any, path: tuple, value: Any) -> Any:
    """A copy of nested lists and dicts, with `value` at the place that `path` leads to."""
    if not path:
        return value
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data
