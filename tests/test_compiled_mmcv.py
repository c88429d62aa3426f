"""Our operators beside those of the compiled mmcv 2.1.0, through mmcv's own Python functions.

Runs where a compiled mmcv is at hand: installed in this environment, or named by the environment
variable MMCV_COMPILED, which is its `_ext*.so` or a folder that holds one (docs/detection.md):

    MMCV_COMPILED=/path/to/target/mmcv python -m pytest tests/test_compiled_mmcv.py

A build for the CPU has no focal loss and no multi-scale deformable attention; those two are
compared where there is a GPU and a build for it.
"""
import contextlib
import importlib
import importlib.util
import os
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

import pytest
import torch
from mmcv import ops
from torch import Tensor

import visattn_dense  # noqa: F401  (makes mmcv.ops importable)
from visattn_dense.openmmlab.compat import mmcv_ext as ours


def _find() -> Path | None:
    named = os.environ.get('MMCV_COMPILED')
    spec = None if named else importlib.util.find_spec('mmcv._ext')
    path = Path(named or (spec and spec.origin) or '')
    found = sorted(path.glob('**/_ext*.so')) if path.is_dir() else [path]
    suffixes = tuple(EXTENSION_SUFFIXES)
    return next((file for file in found if file.name.endswith(suffixes)), None)


_PATH = _find()
pytestmark = pytest.mark.skipif(_PATH is None, reason='no compiled mmcv; MMCV_COMPILED names one')


@pytest.fixture(scope='module')
def compiled() -> ModuleType:
    if 'mmcv._ext' in sys.modules and getattr(sys.modules['mmcv._ext'], '__file__', '') == str(
            _PATH):
        return sys.modules['mmcv._ext']
    # The name decides which initialiser of the library is called.
    spec = importlib.util.spec_from_file_location('_ext', _PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def operators(extension: ModuleType):
    """mmcv.ops with the operators of `extension`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ('nms', 'roi_align', 'deform_conv', 'modulated_deform_conv', 'focal_loss',
                     'multi_scale_deform_attn', 'psa_mask'):
            patch.setattr(importlib.import_module(f'mmcv.ops.{name}'), 'ext_module', extension)
        yield


def both(compiled: ModuleType, function, *arguments):
    """What `function` gives with our operators and with the compiled ones."""
    results = []
    for extension in (ours, compiled):
        with operators(extension):
            results.append(function(*arguments))
    return results


def with_gradients(function, *inputs: Tensor):
    """A function of no arguments: the output and the gradients for the inputs, weighted."""
    def run():
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out = function(*leaves)
        weight = torch.linspace(-1, 2, out.numel(), device=out.device).view_as(out).to(out.dtype)
        return out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)
    return run


def boxes(kind: str) -> Tensor:
    """(N, 4) boxes as x1, y1, x2, y2."""
    corner = torch.rand(3000 if kind == 'thousands' else 61, 2) * 90 - 10
    size = torch.rand(len(corner), 2) * 50
    if kind == 'no area':
        size[::2, 0] = 0
        size[::3, 1] = 0
    if kind == 'outside':
        corner = corner - 500
    if kind == 'whole pixels':
        corner, size = corner.round(), size.round()
    found = torch.cat([corner, corner + size], dim=1)
    if kind == 'repeated':
        found = found[:7].repeat(9, 1)
    return found[:0] if kind == 'none' else found


def distinct_scores(count: int) -> Tensor:
    return (torch.randperm(count) + 1) / (count + 1)


def first_come_first(scores: Tensor) -> Tensor:
    """Distinct scores in the order of `scores`, of equal ones the first the highest."""
    order = scores.sort(descending=True, stable=True).indices
    return torch.empty(len(scores)).scatter_(0, order, torch.linspace(1, 0, len(scores)))


KINDS = ['random', 'thousands', 'none', 'no area', 'outside', 'whole pixels', 'repeated']


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.3, 0.5, 0.7])
@pytest.mark.parametrize('kind', KINDS)
def test_nms(compiled, kind: str, threshold: float, offset: int):
    found = boxes(kind)
    scores = distinct_scores(len(found))
    (dets, kept), (expected, indices) = both(
        compiled, lambda: ops.nms(found, scores, threshold, offset=offset))
    assert kept.tolist() == indices.tolist()
    assert torch.equal(dets, expected)


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_of_whole_pixels_at_every_threshold(compiled, offset: int):
    """Many an IoU equals a threshold there, as decimal numbers go."""
    corner = torch.randint(0, 12, (160, 2))
    found = torch.cat([corner, corner + torch.randint(1, 12, (160, 2))], dim=1).float()
    scores = distinct_scores(160)
    for percent in range(1, 100):
        (_, kept), (_, expected) = both(
            compiled, lambda percent=percent: ops.nms(found, scores, percent / 100, offset=offset))
        assert kept.tolist() == expected.tolist(), percent


@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize('kind', KINDS)
def test_nms_match(compiled, kind: str, threshold: float):
    found = boxes(kind)
    dets = torch.cat([found, distinct_scores(len(found))[:, None]], dim=1)
    groups, expected = both(compiled, lambda: ops.nms_match(dets, threshold))
    assert [group.tolist() for group in groups] == [group.tolist() for group in expected]


@pytest.mark.parametrize('window', [(5, 7), (3, 3)])
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_psamask(compiled, kind: str, window: tuple[int, int]):
    x = torch.randn(2, window[0] * window[1], 3, 5)
    for found, expected in zip(
            *both(compiled, with_gradients(ops.PSAMask(kind, window), x)), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize('kind', ['random', 'no area', 'repeated'])
def test_nms_of_equal_scores_takes_the_first(compiled, kind: str):
    found = boxes(kind)
    scores = torch.arange(len(found)).remainder(3).float() / 4
    with operators(ours):
        kept = ops.nms(found, scores, 0.4)[1]
    # The compiled kernel leaves the order of equal scores to an unstable sort.
    with operators(compiled):
        expected = ops.nms(found, first_come_first(scores), 0.4)[1]
    assert kept.tolist() == expected.tolist()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_nms_in_half_precision_is_the_compiled_one_of_these_numbers(compiled, dtype):
    found, scores = boxes('random').to(dtype), torch.rand(61).to(dtype)
    with operators(ours):
        kept = ops.nms(found, scores, 0.4)[1]
    # The compiled kernel of the CPU takes float32 only.
    with operators(compiled):
        expected = ops.nms(found.float(), first_come_first(scores), 0.4)[1]
    assert kept.tolist() == expected.tolist()


@pytest.mark.parametrize('agnostic', [False, True])
# mmcv's Python takes a maximum over the boxes, so that it has no answer for none of them.
@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'none'])
@pytest.mark.parametrize('method', ['nms', 'soft_nms'])
def test_class_aware_nms(compiled, method: str, kind: str, agnostic: bool):
    found = boxes(kind)[:400]
    scores, classes = distinct_scores(len(found)), torch.arange(len(found)) % 5
    (dets, kept), (expected, indices) = both(compiled, lambda: ops.batched_nms(
        found, scores, classes, dict(type=method, iou_threshold=0.5), agnostic))
    assert kept.tolist() == indices.tolist()
    torch.testing.assert_close(dets, expected)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('kind', ['random', 'no area', 'outside', 'whole pixels', 'repeated'])
def test_soft_nms(compiled, kind: str, method: str, offset: int):
    if kind == 'no area' and method == 'gaussian' and not offset:
        pytest.skip('0 / 0: the compiled kernel gives such boxes the score NaN')
    found = boxes(kind)
    scores = distinct_scores(len(found))
    (dets, kept), (expected, indices) = both(compiled, lambda: ops.soft_nms(
        found, scores, 0.3, sigma=0.5, min_score=0.05, method=method, offset=offset))
    assert kept.tolist() == indices.tolist()
    torch.testing.assert_close(dets, expected)


def rois(kind: str) -> Tensor:
    found = boxes(kind)
    return torch.cat([(torch.arange(len(found)) % 2)[:, None].to(found), found], dim=1)


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
@pytest.mark.parametrize('kind', KINDS)
def test_roi_align(compiled, kind: str, mode: str, ratio: int, aligned: bool):
    features, regions = torch.randn(2, 3, 19, 23), rois(kind)
    if mode == 'max' and ratio == 0 and aligned:
        # Without area there is no sample: the compiled kernel gives -10000, ours the point there.
        regions = regions[(regions[:, 3:] > regions[:, 1:3]).all(1)]
    (out, grad), (expected, expected_grad) = both(compiled, with_gradients(
        lambda x: ops.roi_align(x, regions, (7, 5), 0.25, ratio, mode, aligned), features))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_in_float64(compiled, mode: str):
    features, regions = torch.randn(2, 3, 19, 23).double(), rois('random').double()
    (out, grad), (expected, expected_grad) = both(compiled, with_gradients(
        lambda x: ops.roi_align(x, regions, (7, 5), 0.25, 0, mode, True), features))
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(grad, expected_grad)


def test_roi_align_in_half_precision(compiled):
    # Coordinates that float16 holds: the compiled kernel computes with rounded ones.
    regions = torch.tensor([[0, 4., 8., 24., 40.], [1, 0., 0., 32., 16.]]).half()
    features = torch.randn(2, 3, 19, 23).half()
    out, expected = both(compiled, lambda: ops.roi_align(features, regions, (2, 2), 0.25, 2))
    assert out.dtype == expected.dtype == torch.float16
    torch.testing.assert_close(out, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize('stride, padding, dilation, groups, deform_groups',
                         [(1, 1, 1, 1, 1), (2, 1, 1, 2, 1), (1, 2, 2, 1, 2)])
@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('offsets', ['anywhere', 'zero', 'whole pixels', 'float64'])
def test_deform_conv(compiled, offsets: str, modulated: bool, stride: int, padding: int,
                     dilation: int, groups: int, deform_groups: int):
    dtype = torch.float64 if offsets == 'float64' else torch.float32
    x, weight = torch.randn(2, 4, 13, 11).to(dtype), torch.randn(6, 4 // groups, 3, 3).to(dtype)
    height, width = ((side + 2 * padding - 2 * dilation - 1) // stride + 1 for side in (13, 11))
    offset = torch.randn(2, 18 * deform_groups, height, width).to(dtype) * 3
    if offsets == 'zero':
        offset = torch.zeros_like(offset)
    if offsets == 'whole pixels':
        offset = offset.round()
    mask, bias = torch.rand(2, 9 * deform_groups, height, width).to(dtype), torch.randn(6).to(dtype)
    geometry = (stride, padding, dilation, groups, deform_groups)
    if modulated:
        run = with_gradients(lambda *leaves: ops.modulated_deform_conv2d(*leaves, *geometry),
                             x, offset, mask, weight, bias)
    else:
        run = with_gradients(lambda *leaves: ops.deform_conv2d(*leaves, *geometry),
                             x, offset, weight)
    tolerance = {} if dtype == torch.float64 else {'rtol': 1e-4, 'atol': 1e-3}
    for found, expected in zip(*both(compiled, run), strict=True):
        torch.testing.assert_close(found, expected, **tolerance)


def test_modulated_deform_conv_of_larger_maps(compiled):
    x, weight = torch.randn(2, 4, 5, 4), torch.randn(6, 4, 3, 3)
    offset, mask = torch.randn(2, 18, 9, 8), torch.rand(2, 9, 9, 8)
    run = with_gradients(
        lambda *leaves: ops.modulated_deform_conv2d(*leaves, None, 1, 1, 1, 1, 1),
        x, offset, mask, weight)
    for found, expected in zip(*both(compiled, run), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def cuda(compiled) -> str:
    if not torch.cuda.is_available():
        pytest.skip('the compiled operator is for GPUs only')
    return 'cuda'


def test_sigmoid_focal_loss(compiled, cuda: str):
    target, weight = torch.arange(101, device=cuda) % 6, torch.rand(5, device=cuda)
    run = with_gradients(
        lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, 'none'),
        torch.randn(101, 5, device=cuda) * 4)
    for found, expected in zip(*both(compiled, run), strict=True):
        torch.testing.assert_close(found, expected)


def test_ms_deform_attn(compiled, cuda: str):
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
    shapes = torch.tensor([[5, 3], [2, 4]], device=cuda)
    starts = torch.tensor([0, 15], device=cuda)
    inputs = [torch.randn(2, 23, 2, 4), torch.rand(2, 7, 2, 2, 4, 2), torch.rand(2, 7, 2, 2, 4)]
    run = with_gradients(
        lambda value, where, weight: MultiScaleDeformableAttnFunction.apply(
            value, shapes, starts, where, weight, 64), *(tensor.to(cuda) for tensor in inputs))
    for found, expected in zip(*both(compiled, run), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
