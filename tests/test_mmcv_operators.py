"""The operators that models of mmdet and mmseg reach beside the common ones, against naive loops.

Each operator is held to loops in float64, with its gradients, on every device that there is.
"""

from __future__ import annotations

import importlib
import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import DefaultScope
from torch import Tensor

import visattn_dense  # noqa: F401 (its import makes mmcv._ext importable)
from tests.comparing import assert_same_with_gradients

pytest.importorskip('mmcv')
if not importlib.import_module('mmcv._ext').__file__.endswith('.py'):
    pytest.skip('a compiled mmcv is installed, which is used as it is', allow_module_level=True)
ops = importlib.import_module('mmcv.ops')

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='no GPU'))]


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

    # Another test may have left another scope behind.
    with DefaultScope.overwrite_default_scope('mmseg'):
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


# Inside, over the border on two sides, smaller than a bin, of the second image, outside.
ROIS = [[0, 1.0, 2.0, 11.0, 9.5], [0, -2.7, -2.3, 5.0, 25.1], [1, 4.0, 4.0, 4.6, 4.9],
        [1, 0.0, 0.0, 21.0, 13.0], [0, 60.0, 60.0, 70.0, 70.0]]


def naive_roi_pool(x: Tensor, rois: Tensor, size: tuple[int, int], scale: float) -> Tensor:
    out = x.new_zeros(len(rois), x.shape[1], *size)
    for k, roi in enumerate(rois.tolist()):
        start = [roi[2] * scale, roi[1] * scale]
        step = [((roi[4] + 1) * scale - start[0]) / size[0],
                ((roi[3] + 1) * scale - start[1]) / size[1]]
        if min(step) <= 0:
            continue
        for place in itertools.product(*map(range, size)):
            lines = [range(max(math.floor(start[axis] + place[axis] * step[axis]), 0),
                           min(math.ceil(start[axis] + (place[axis] + 1) * step[axis]),
                               x.shape[2 + axis])) for axis in (0, 1)]
            if all(lines):
                values = [x[int(roi[0]), :, row, column]
                          for row, column in itertools.product(*lines)]
                out[(k, slice(None), *place)] = torch.stack(values).amax(0)
    return out


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('scale', [0.5, 0.25])
def test_roi_pool(scale: float, device: str):
    x = torch.randn(2, 3, 7, 11, dtype=torch.float64, device=device, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64, device=device)
    expected = naive_roi_pool(x, rois, (2, 3), scale)
    assert not expected[4].any()
    assert_same_with_gradients(ops.roi_pool(x, rois, (2, 3), scale), expected, [x])
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_pool(x, rois, (2, 3), scale), x, fast_mode=True)


def test_roi_pool_of_equal_values_and_of_boxes_without_area():
    x = torch.zeros(1, 1, 4, 4, requires_grad=True)
    rois = torch.tensor([[0, 1., 1., 3., 3.], [0, 3., 3., 2., 2.]])
    out = ops.RoIPool(1)(x, rois)
    out.sum().backward()
    # The first pixel in reading order has the whole gradient of the first box.
    assert x.grad.nonzero().tolist() == [[0, 0, 1, 1]] and x.grad.sum() == 1
    assert not out[1].any()
    assert ops.RoIPool(2)(x, rois[:0]).shape == (0, 1, 2, 2)


def test_roi_pool_in_half_precision_keeps_exact_coordinates():
    rois = torch.tensor([[0, 1001.0, 3.0, 1010.0, 8.0]])
    x = torch.randn(1, 2, 13, 1024).half().requires_grad_()
    out = ops.roi_pool(x, rois, (2, 2), 1.0)
    assert torch.equal(out, ops.roi_pool(x.float(), rois, (2, 2), 1.0).half())
    assert torch.equal(out, naive_roi_pool(x, rois, (2, 2), 1.0))


def naive_deform_roi_pool(
        x: Tensor, rois: Tensor, offset: Tensor, size: tuple[int, int], scale: float, ratio: int,
        gamma: float) -> Tensor:
    out = x.new_zeros(len(rois), x.shape[1], *size)
    sides = x.shape[2:]
    for k, roi in enumerate(rois.tolist()):
        start = [roi[2] * scale - 0.5, roi[1] * scale - 0.5]
        extent = [(roi[4] - roi[2]) * scale, (roi[3] - roi[1]) * scale]
        step = [extent[0] / size[0], extent[1] / size[1]]
        grid = [ratio or math.ceil(side) for side in step]
        for place in itertools.product(*map(range, size)):
            for point in itertools.product(*map(range, grid)):
                at = [start[axis] + gamma * extent[axis] * offset[(k, 1 - axis, *place)]
                      + (place[axis] + (point[axis] + 0.5) / grid[axis]) * step[axis]
                      for axis in (0, 1)]
                if any(not -1 <= value <= side for value, side in zip(at, sides, strict=True)):
                    continue
                at = [value.clamp(0, side - 1) for value, side in zip(at, sides, strict=True)]
                low = [min(int(value.item()), side - 2)
                       for value, side in zip(at, sides, strict=True)]
                fy, fx = (value - base for value, base in zip(at, low, strict=True))
                window = x[int(roi[0]), :, low[0]:low[0] + 2, low[1]:low[1] + 2]
                value = torch.stack([1 - fy, fy]) @ window @ torch.stack([1 - fx, fx])
                out[(k, slice(None), *place)] += value / math.prod(grid)
    return out


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool(ratio: int, device: str):
    x = torch.randn(2, 3, 7, 11, dtype=torch.float64, device=device, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64, device=device)
    offset = torch.rand(5, 2, 2, 3, dtype=torch.float64, device=device) - 0.5
    arguments = ((2, 3), 0.5, ratio, 0.1)
    expected = naive_deform_roi_pool(x, rois, offset, *arguments)
    assert_same_with_gradients(ops.deform_roi_pool(x, rois, offset, *arguments), expected, [x])
    none = ops.deform_roi_pool(x, rois, None, *arguments)
    assert_same_with_gradients(
        none, naive_deform_roi_pool(x, rois, offset * 0, *arguments), [x])
    # The same as RoIAlign, but for samples of boxes without area.
    torch.testing.assert_close(none, ops.roi_align(x, rois, (2, 3), 0.5, ratio, 'avg', True))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('ratio', [0, 2])
def test_deform_roi_pool_has_the_derivative_for_offsets_within_the_map(ratio: int, device: str):
    x = torch.randn(2, 3, 7, 11, dtype=torch.float64, device=device, requires_grad=True)
    rois = torch.tensor([[0, 4., 5., 13., 10.], [1, 6., 6., 7.3, 8.1], [1, 4., 4., 17., 10.]],
                        dtype=torch.float64, device=device)
    offset = torch.rand(3, 2, 2, 3, dtype=torch.float64, device=device) - 0.5
    offset.requires_grad_()
    arguments = ((2, 3), 0.5, ratio, 0.1)
    expected = naive_deform_roi_pool(x, rois, offset, *arguments)
    assert_same_with_gradients(
        ops.deform_roi_pool(x, rois, offset, *arguments), expected, [x, offset])
    assert torch.autograd.gradcheck(
        lambda *inputs: ops.deform_roi_pool(inputs[0], rois, inputs[1], *arguments), (x, offset),
        fast_mode=True)


def test_deform_roi_pool_extrapolates_the_gradient_of_an_offset_outside_of_the_map_as_mmcv_does():
    # One sample half a pixel above the map, at y = -0.5 and x = 0.25, in the cell 1, 2 / 4, 8.
    x = torch.tensor([[[[1., 2., 0.], [4., 8., 0.], [0., 0., 0.]]]])
    rois = torch.tensor([[0, 0.25, -0.5, 1.25, 0.5]])
    offset = torch.zeros(1, 2, 1, 1, requires_grad=True)
    out = ops.deform_roi_pool(x, rois, offset, (1, 1), 1.0, 1, 1.0)
    out.sum().backward()
    assert out.item() == 1.25
    # dx: -0.5 · (8 - 4) + 1.5 · (2 - 1); dy: 0.25 · (8 - 2) + 0.75 · (4 - 1)
    assert offset.grad.flatten().tolist() == [-0.5, 3.75]


@pytest.mark.parametrize('kind', ['DeformRoIPoolPack', 'ModulatedDeformRoIPoolPack'])
def test_deform_roi_pool_is_a_roi_layer_of_mmdet(kind: str):
    from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor

    extractor = SingleRoIExtractor(
        dict(type=kind, output_size=2, output_channels=3, deform_fc_channels=5), 3, [4, 8])
    levels = [torch.randn(1, 3, 8, 8, requires_grad=True), torch.randn(1, 3, 4, 4)]
    out = extractor(levels, torch.tensor([[0, 2., 2., 20., 20.], [0, 0., 0., 9., 30.]]))
    out.square().sum().backward()
    assert out.shape == (2, 3, 2, 2) and levels[0].grad.any()
    last = extractor.roi_layers[0].offset_fc[-1]
    assert last.bias.grad.any() and last.bias.grad.isfinite().all()


def compare_sync_bn(rank: int, file: str) -> None:
    """One of two processes: MMSyncBN on half of a batch is batch norm on the whole of it."""
    import torch.distributed as dist

    dist.init_process_group('gloo', init_method=f'file://{file}', rank=rank, world_size=2)
    torch.manual_seed(0)
    x, pull = torch.randn(4, 3, 5, 2) * 2 + 1, torch.randn(4, 3, 5, 2)
    half = slice(2 * rank, 2 * rank + 2)
    layer, whole = ops.SyncBatchNorm(3, momentum=0.3), torch.nn.BatchNorm2d(3, momentum=0.3)
    whole.load_state_dict(layer.state_dict())
    ours, theirs = x[half].clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = layer(ours), whole(theirs)
    (found * pull[half]).sum().backward()
    (expected * pull).sum().backward()
    torch.testing.assert_close(found, expected[half])
    torch.testing.assert_close(ours.grad, theirs.grad[half])
    torch.testing.assert_close(layer.running_mean, whole.running_mean)
    torch.testing.assert_close(layer.running_var, whole.running_var)
    # The mean over the processes, as DistributedDataParallel takes it.
    torch.testing.assert_close(layer.weight.grad * 2, whole.weight.grad)
    torch.testing.assert_close(layer.bias.grad * 2, whole.bias.grad)
    half_precision = ops.SyncBatchNorm(3)(x[half].half())
    assert half_precision.dtype == torch.float16 and half_precision.isfinite().all()
    # torch 2.6 ends a group with the GIL held and waits for threads that may need the GIL to free
    # the tensors of a reduction. So the group, which the graph holds too, lives as long as the
    # process.
    compare_sync_bn.group = dist.group.WORLD
    dist.barrier()


def test_sync_bn_of_two_processes_is_batch_norm_of_the_whole_batch(tmp_path: Path):
    torch.multiprocessing.spawn(compare_sync_bn, (str(tmp_path / 'rendezvous'),), nprocs=2)
