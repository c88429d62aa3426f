"""Whole backbones by Triton. tests/test_triton_forms.py runs these cases in a process of their own:
on the GPU where there is one, else in Triton's interpreter."""
import copy

import pytest
import torch
from torch import Tensor, nn

from visattn_dense.attention.naive import as_naive
from visattn_dense.layers import DropPath
from visattn_dense.ops.launching import recorded

from .interpreting import DEVICE, forbid_races, interpret_quickly, poisoned_memory
from .tiny_backbones import BACKBONES

forbid_races()
interpret_quickly()


def results(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The outputs, and the gradients of the parameters that have one."""
    outs = model(x)
    grads = torch.autograd.grad(sum((out * out.detach().cos()).sum() for out in outs),
                                [*model.parameters()], allow_unused=True)
    return [*outs, *(grad for grad in grads if grad is not None)]


@pytest.mark.parametrize('name', BACKBONES)
def test_backbones_train_as_by_their_equations(name):
    """Also where the backward pass computes the activations again."""
    torch.manual_seed(0)
    model = BACKBONES[name]().to(DEVICE).eval()
    x = torch.randn(1, 3, 33, 40, device=DEVICE)
    expected = results(as_naive(copy.deepcopy(model).double()), x.double())
    with poisoned_memory():
        found = results(model, x)
        model.with_cp = True
        for module in model.modules():                   # as in training, but not at random
            module.training = not isinstance(module, (DropPath, nn.Dropout, nn.BatchNorm2d))
        again = results(model, x)
    count = len(model.out_indices)
    for part in slice(count), slice(count, None):
        most = max(each.abs().max() for each in expected[part])
        for a, b, c in zip(found[part], again[part], expected[part], strict=True):
            assert (a - c).abs().max() <= 2e-5 * most and (b - c).abs().max() <= 2e-5 * most


@pytest.mark.parametrize('with_cp', [False, True])
def test_efficientvit_trains_by_the_statistics_of_the_batch(with_cp):
    """Its norms count each batch once."""
    torch.manual_seed(0)
    model = BACKBONES['EfficientViT']().to(DEVICE)
    exact = as_naive(copy.deepcopy(model).double())
    model.with_cp = with_cp
    x = torch.randn(2, 3, 64, 72, device=DEVICE)
    expected = [*results(exact, x.double()), *exact.buffers()]
    with poisoned_memory():
        found = [*results(model, x), *model.buffers()]
    outs, buffers = len(model.out_indices), len(list(model.buffers()))
    for part in slice(outs), slice(outs, -buffers), slice(-buffers, None):
        most = max(each.abs().max() for each in expected[part])
        for a, b in zip(found[part], expected[part], strict=True):
            assert (a - b).abs().max() <= 5e-5 * most
    with recorded() as launches:
        results(model, x)
    assert {'batch_statistics_kernel', 'norm_act_gradient_kernel'} <= {
        each.kernel.__name__ for each in launches}
