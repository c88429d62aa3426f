"""The operators that models of mmdet and mmseg reach beside the common ones, against naive loops.

Each operator is held to loops in float64, with its gradients, on every device that there is.
"""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import visattn_dense  # noqa: F401 (its import makes mmcv._ext importable)

pytest.importorskip('mmcv')
if not importlib.import_module('mmcv._ext').__file__.endswith('.py'):
    pytest.skip('a compiled mmcv is installed, which is used as it is', allow_module_level=True)
ops = importlib.import_module('mmcv.ops')

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='no GPU'))]


def assert_same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected)
    pull = torch.randn_like(found)
    for a, b in zip(*(torch.autograd.grad((out * pull).sum(), inputs) for out in (found, expected)),
                    strict=True):
        assert b.any()
        torch.testing.assert_close(a, b)


def naive_psamask(x: Tensor, kind: str, window: tuple[int, int]) -> Tensor:
    count, _, height, width = x.shape
    out = x.new_zeros(count, height, width, height, width)
    sides = [range(height), range(width)] * 2
    for py, px, qy, qx in itertools.product(*sides):
        row, column = qy - py + (window[0] - 1) // 2, qx - px + (window[1] - 1) // 2
        if 0 <= row < window[0] and 0 <= column < window[1]:
            value = x[:, row * window[1] + column, py, px]
            place = (qy, qx, py, px) if kind == 'collect' else (py, px, qy, qx)
            out[(slice(None), *place)] = value
    return out.flatten(1, 2)


@pytest.mark.parametrize('device', DEVICES)
# Windows that reach over the map, and that do not; one with an even side.
@pytest.mark.parametrize('window', [(5, 7), (3, 3), (1, 2)])
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_psamask(kind: str, window: tuple[int, int], device: str):
    x = torch.randn(2, window[0] * window[1], 3, 5, dtype=torch.float64, device=device)
    x.requires_grad_()
    found = ops.PSAMask(kind, window)(x)
    assert_same_with_gradients(found, naive_psamask(x, kind, window), [x])
    assert torch.autograd.gradcheck(ops.PSAMask(kind, window), x)


def test_psanet_trains():
    from mmseg.models.decode_heads import PSAHead

    head = PSAHead(in_channels=8, channels=8, num_classes=3, mask_size=(5, 7),
                   psa_type='bi-direction')
    x = torch.randn(2, 8, 5, 7, requires_grad=True)
    out = head([x])
    out.square().sum().backward()
    assert out.shape == (2, 3, 5, 7) and x.grad.any() and x.grad.isfinite().all()


def naive_carafe(x: Tensor, masks: Tensor, size: int, groups: int, scale: int) -> Tensor:
    count, channels, height, width = x.shape
    out = x.new_zeros(count, channels, height * scale, width * scale)
    for c, y, z, i, j in itertools.product(
            range(channels), *map(range, out.shape[2:]), range(size), range(size)):
        row, column = y // scale + i - size // 2, z // scale + j - size // 2
        if 0 <= row < height and 0 <= column < width:
            point = (c // (channels // groups) * size + i) * size + j
            out[:, c, y, z] += x[:, c, row, column] * masks[:, point, y, z]
    return out


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('size, groups, scale', [(3, 2, 2), (5, 1, 1), (1, 2, 3)])
def test_carafe(size: int, groups: int, scale: int, device: str):
    x = torch.randn(2, 4, 3, 2, dtype=torch.float64, device=device, requires_grad=True)
    masks = torch.randn(2, size**2 * groups, 3 * scale, 2 * scale, dtype=torch.float64,
                        device=device, requires_grad=True)
    expected = naive_carafe(x, masks, size, groups, scale)
    assert_same_with_gradients(ops.carafe(x, masks, size, groups, scale), expected, [x, masks])
    assert torch.autograd.gradcheck(
        lambda *inputs: ops.carafe(*inputs, size, groups, scale), (x, masks))


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_carafe_in_half_precision_sums_in_float32(dtype: torch.dtype):
    x = torch.randn(1, 4, 5, 3).to(dtype).requires_grad_()
    masks = torch.randn(1, 25, 10, 6).to(dtype).requires_grad_()
    found = ops.carafe(x, masks, 5, 1, 2)
    exact = ops.carafe(x.float(), masks.float(), 5, 1, 2)
    assert found.dtype == dtype
    torch.testing.assert_close(found, exact.to(dtype), rtol=0, atol=0)
    assert all(grad.dtype == dtype for grad in torch.autograd.grad(found.sum(), [x, masks]))


def test_fpn_carafe_trains():
    from mmdet.models.necks import FPN_CARAFE

    neck = FPN_CARAFE(in_channels=[4, 8], out_channels=8, num_outs=2)
    coarse = torch.randn(1, 8, 4, 3, requires_grad=True)
    outs = neck([torch.randn(1, 4, 8, 6), coarse])
    # The fine level is made of the coarse one, upsampled.
    (grad,) = torch.autograd.grad(outs[0].square().sum(), coarse)
    assert outs[0].shape == (1, 8, 8, 6) and grad.any() and grad.isfinite().all()


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kernel, pad', [((3, 3), (1, 1)), ((1, 1), (0, 0)), ((3, 2), (2, 1))])
def test_masked_convolution_is_a_convolution_at_the_marked_positions(kernel, pad, device: str):
    x = torch.randn(1, 3, 7, 5, dtype=torch.float64, device=device)
    layer = ops.MaskedConv2d(3, 4, kernel, padding=pad).double().to(device)
    mask = torch.rand(1, 7, 5, device=device) > 0.6
    with torch.no_grad():
        full, found = F.conv2d(x, layer.weight, layer.bias, padding=pad), layer(x, mask)
    assert found.shape == full.shape and mask.any()
    marked = F.pad(mask, (0, full.shape[3] - 5, 0, full.shape[2] - 7))
    torch.testing.assert_close(found, full * marked)
    assert not layer(x, torch.zeros_like(mask)).any()
