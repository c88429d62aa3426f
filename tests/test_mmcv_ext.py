"""`mmcv._ext` on torchvision's kernels: found in every order of imports, right in each operator."""

from __future__ import annotations

import ast
import importlib
import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import visattn_dense  # noqa: F401 (its import makes mmcv._ext importable)
from tests.comparing import assert_same_with_gradients
from visattn_dense.openmmlab.compat.op_names import FORK_OPS, MMCV_OPS

ROOT = Path(__file__).resolve().parents[1]
pytest.importorskip('mmcv')
ext = importlib.import_module('mmcv._ext')
if not ext.__file__.endswith('.py'):
    pytest.skip('a compiled mmcv is installed, which is used as it is', allow_module_level=True)
ops = importlib.import_module('mmcv.ops')


def python(code: str, *paths: Path) -> subprocess.CompletedProcess:
    """Run `code` in a fresh interpreter, with `paths` and the checkout first on sys.path."""
    env = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (*paths, ROOT))))
    return subprocess.run([sys.executable, '-c', code], env=env, capture_output=True, text=True)


@pytest.mark.parametrize('code', [
    'import visattn_dense_startup; from mmcv.ops import nms; import visattn_dense',
    'import visattn_dense; from mmcv.ops import nms',
    'import mmengine, mmcv; import visattn_dense; from mmcv.ops import roi_align',
    'import visattn_dense_startup, mmdet.models; from mmcv.ops import RoIAlign',
    'import visattn_dense, importlib.util as u; assert u.find_spec("mmcv._ext").has_location; '
    'from mmcv.utils import ext_loader; assert ext_loader.check_ops_exist()',
])
def test_importable_in_every_order(code: str):
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_start_up_loads_nothing_heavy_and_installs_once():
    done = python(
        'import sys, visattn_dense_startup as s; s.install(); '
        'names = [getattr(f, "__name__", "") for f in sys.meta_path]; '
        'print(names.count("MmcvExtFinder"), names[-1], "torch" in sys.modules, '
        '"visattn_dense" in sys.modules)')
    assert done.stdout.split() == ['1', 'MmcvExtFinder', 'False', 'False'], done.stderr


def test_compiled_mmcv_is_preferred(tmp_path: Path):
    (tmp_path / 'mmcv').mkdir()
    (tmp_path / 'mmcv' / '__init__.py').write_text('')
    (tmp_path / 'mmcv' / '_ext.py').write_text('nms = "compiled"')
    done = python('import visattn_dense; import mmcv._ext; print(mmcv._ext.nms)', tmp_path)
    assert done.stdout.strip() == 'compiled', done.stderr


def test_op_table_is_what_the_installed_mmcv_loads():
    asked = set()
    for path in Path(ops.__file__).parent.glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and getattr(node.func, 'attr', '') == 'load_ext':
                asked |= {element.value for element in node.args[1].elts}
    asked -= {'get_compiler_version', 'get_compiling_cuda_version'}
    # onedl-mmcv asks for more than mmcv; each has to be there when mmcv.ops is imported.
    assert set(MMCV_OPS) == asked - set(FORK_OPS)
    for name in FORK_OPS:
        with pytest.raises(ext.MissingOpError, match=name):
            getattr(ext, name)()


def reached_operators() -> set[str]:
    """What the code and the configs of mmdet and mmseg may call of `mmcv._ext`, by their text.

    From each name that they import from mmcv.ops, and each `type` of theirs that mmcv.ops defines
    or registers, all names in its definition are followed, down to `ext_module.NAME`.
    """
    uses: dict[str, set[str]] = {}
    for path in Path(ops.__file__).parent.glob('*.py'):
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names = {target.id for target in getattr(node, 'targets', ())
                     if isinstance(target, ast.Name)} | {getattr(node, 'name', '')}
            for decorator in getattr(node, 'decorator_list', ()):
                names |= {str(part.value) for part in ast.walk(decorator)
                          if isinstance(part, ast.Constant)}
            for name in names - {''}:
                uses.setdefault(name, set()).update(
                    ast.unparse(part) for part in ast.walk(node)
                    if isinstance(part, (ast.Name, ast.Attribute)))
    found, waiting = set(), set()
    for package in ('mmdet', 'mmseg'):
        for path in Path(importlib.util.find_spec(package).origin).parent.rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
                if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('mmcv.ops'):
                    waiting |= {alias.name for alias in node.names}
                if isinstance(node, ast.keyword) and node.arg == 'type':
                    waiting.add(str(getattr(node.value, 'value', '')))
    while waiting:
        name = waiting.pop()
        if name not in found and (name in uses or name.startswith('ext_module.')):
            found.add(name)
            waiting |= uses.get(name, set())
    return {name.removeprefix('ext_module.') for name in found if name.startswith('ext_module.')}


def test_all_that_mmdet_and_mmseg_reach_has_an_implementation():
    reached = reached_operators()
    # The reading is not blind: by import, by a config's type, through another file of mmcv.ops.
    assert {'psamask_forward', 'deform_roi_pool_backward', 'sync_bn_forward_mean', 'softnms',
            'carafe_backward', 'nms_match', 'roi_pool_forward'} <= reached
    assert reached - set(ext.IMPLEMENTED) == set()


def test_page_of_operators_is_current():
    from tools.operator_table import PAGE, page

    text = PAGE.read_text(encoding='utf-8')
    assert page(text) == text, 'run python tools/operator_table.py'


def test_missing_op_exists_and_names_itself_and_the_remedy_when_called():
    assert callable(ext.knn_forward)
    with pytest.raises(NotImplementedError, match=r"'knn_forward'.*mmcv 2\.1\.0.*pip install"):
        ext.knn_forward(torch.zeros(1))


def test_what_is_no_operator_is_an_attribute_error():
    with pytest.raises(AttributeError):
        _ = ext.no_such_operator


def test_missing_torchvision_kernels_name_both_versions_and_the_command(tmp_path: Path):
    (tmp_path / 'torchvision').mkdir()
    (tmp_path / 'torchvision' / '__init__.py').write_text(
        'raise RuntimeError("operator torchvision::nms does not exist")')
    done = python(
        'import visattn_dense, torch; from mmcv.ops import nms; '
        'nms(torch.zeros(1, 4), torch.ones(1), 0.5)', tmp_path)
    assert done.returncode != 0
    for part in ('TorchvisionKernelsError', f'torch {torch.__version__}', 'torchvision 0.',
                 'pip install --force-reinstall torch torchvision', 'CPU'):
        assert part in done.stderr


def naive_iou(a: np.ndarray, b: np.ndarray, offset: int) -> np.floating:
    """IoU in the dtype of the boxes, which is mmcv's float32 where they are."""
    side = [np.minimum(a[i + 2], b[i + 2]) - np.maximum(a[i], b[i]) + offset for i in (0, 1)]
    inter = np.maximum(side[0], 0) * np.maximum(side[1], 0)
    area = [(box[2] - box[0] + offset) * (box[3] - box[1] + offset) for box in (a, b)]
    return inter / (area[0] + area[1] - inter)


def naive_nms(boxes, scores, threshold: float, offset: int) -> list[int]:
    boxes = (boxes if boxes.dtype == torch.float64 else boxes.float()).numpy()
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: (-float(scores[i]), i)):
        if all(naive_iou(boxes[j], boxes[i], offset) <= boxes.dtype.type(threshold) for j in kept):
            kept.append(i)
    return kept


def random_boxes(count: int, size: float = 40.0) -> torch.Tensor:
    corner = torch.rand(count, 2) * size
    return torch.cat([corner, corner + 1 + torch.rand(count, 2) * size / 2], dim=1)


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.5])
def test_nms_is_the_naive_one(offset: int, threshold: float):
    boxes, scores = random_boxes(61), torch.rand(61)
    dets, kept = ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == naive_nms(boxes, scores, threshold, offset)
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_nms_offset_changes_the_answer():
    # IoU is 4/12 = 1/3 as real boxes and 9/23 with the + 1 of each side.
    boxes = torch.tensor([[0., 0., 4., 2.], [2., 0., 6., 2.]])
    scores = torch.tensor([0.9, 0.8])
    assert ops.nms(boxes, scores, 0.36, offset=0)[1].tolist() == [0, 1]
    assert ops.nms(boxes, scores, 0.36, offset=1)[1].tolist() == [0]


def test_nms_keeps_the_first_of_equal_scores():
    boxes = torch.tensor([[0., 0., 9., 9.], [0., 0., 9., 9.], [20., 20., 29., 29.]]).repeat(40, 1)
    assert ops.nms(boxes, torch.full((120,), 0.5), 0.5)[1].tolist() == [0, 2]


def test_nms_iou_equal_to_the_threshold_is_kept():
    boxes = torch.tensor([[0., 0., 4., 4.], [0., 0., 4., 2.]])
    assert ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.5)[1].tolist() == [0, 1]


@pytest.mark.parametrize('threshold', [0.1, 0.2, 0.3, 0.4, 0.6, 0.8])
def test_nms_compares_with_the_threshold_that_float32_holds(threshold: float):
    # The IoU is exactly the threshold, whose float32 lies on either side of the decimal number.
    boxes = torch.tensor([[0., 0., 10., 1.], [0., 0., 10 * threshold, 1.]])
    for dtype in (torch.float32, torch.float64):
        scores = torch.tensor([0.9, 0.8], dtype=dtype)
        assert ops.nms(boxes, scores, threshold)[1].tolist() == [0, 1]


@pytest.mark.parametrize('offset', [0, 1])
def test_nms_of_whole_pixels_is_the_naive_one_at_every_threshold(offset: int):
    corner = torch.randint(0, 8, (23, 2))
    boxes = torch.cat([corner, corner + torch.randint(1, 9, (23, 2))], dim=1).float()
    scores = torch.rand(23)
    for percent in range(1, 100):
        kept = ops.nms(boxes, scores, percent / 100, offset=offset)[1]
        assert kept.tolist() == naive_nms(boxes, scores, percent / 100, offset), percent


@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_nms_match_groups_the_boxes_that_nms_drops(dtype: type):
    boxes = random_boxes(47).numpy().astype(dtype)
    scores = np.random.default_rng(0).permutation(47).astype(dtype)
    found = ops.nms_match(np.concatenate([boxes, scores[:, None]], axis=1), 0.3)
    rest, expected = sorted(range(47), key=lambda i: -scores[i]), []
    while rest:
        expected.append([i for i in rest if i == rest[0]
                         or naive_iou(boxes[rest[0]], boxes[i], 0) >= dtype(0.3)])
        rest = [i for i in rest if i not in expected[-1]]
    assert [group.tolist() for group in found] == expected
    assert len(found) < 47


def test_nms_match_takes_an_iou_equal_to_the_threshold_and_gives_tensors_for_tensors():
    dets = torch.tensor([[0., 0., 2., 1., .5], [0., 0., 10., 1., .9], [20., 0., 22., 1., .7]])
    found = ops.nms_match(dets, 0.2)
    assert [group.tolist() for group in found] == [[1, 0], [2]]
    assert all(group.dtype == torch.long for group in found)
    assert ops.nms_match(dets[:0], 0.2) == []


def test_nms_of_no_boxes():
    dets, kept = ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5) and kept.shape == (0,) and kept.dtype == torch.long


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
def test_nms_in_other_precisions(dtype: torch.dtype):
    boxes, scores = random_boxes(37).to(dtype), torch.rand(37).to(dtype)
    assert ops.nms(boxes, scores, 0.4)[1].tolist() == naive_nms(boxes, scores, 0.4, 0)


def naive_soft_nms(boxes, scores, threshold, sigma, min_score, method):
    rest = {i: float(score) for i, score in enumerate(scores)}
    picked = []
    while rest:
        best = max(rest, key=rest.get)
        picked.append((best, rest.pop(best)))
        for i in list(rest):
            iou = float(naive_iou(boxes[best].numpy(), boxes[i].numpy(), 0))
            if method == 'gaussian':
                rest[i] *= float(torch.exp(torch.tensor(-iou * iou / sigma)))
            elif iou >= threshold:
                rest[i] *= 0 if method == 'naive' else 1 - iou
            if rest[i] < min_score:
                del rest[i]
    return picked


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms_is_the_naive_one(method: str):
    boxes, scores = random_boxes(43), torch.rand(43)
    dets, kept = ops.soft_nms(boxes, scores, 0.3, sigma=0.5, min_score=0.05, method=method)
    expected = naive_soft_nms(boxes, scores, 0.3, 0.5, 0.05, method)
    assert kept.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]))
    assert torch.equal(dets[:, :4], boxes[kept])


def test_soft_nms_example_of_mmcv_with_boxes_without_area():
    boxes = torch.tensor([[4., 3., 5., 3.], [4., 3., 5., 4.], *[[3., 1., 3., 1.]] * 4])
    scores = torch.tensor([0.9, 0.9, 0.5, 0.5, 0.4, 0.0])
    dets, kept = ops.soft_nms(boxes, scores, 0.6, sigma=0.5)
    # mmcv's docstring: five survive; the score 0 is below min_score.
    assert len(dets) == 5 and sorted(kept.tolist()) == [0, 1, 2, 3, 4]


def test_batched_nms_of_every_kind_leaves_classes_apart():
    boxes = torch.tensor([[0., 0., 9., 9.]]).repeat(2, 1)
    for kind in ('nms', 'soft_nms'):
        dets, kept = ops.batched_nms(
            boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 1]),
            dict(type=kind, iou_threshold=0.5))
        assert kept.tolist() == [0, 1]

def naive_sample(plane: torch.Tensor, y: float, x: float) -> torch.Tensor:
    """Bilinear value; outside by more than a pixel is 0, nearer is the border's."""
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return plane.new_zeros(())
    y, x = min(max(y, 0), height - 1), min(max(x, 0), width - 1)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    low, right = min(top + 1, height - 1), min(left + 1, width - 1)
    fy, fx = y - top, x - left
    return (plane[top, left] * (1 - fy) * (1 - fx) + plane[top, right] * (1 - fy) * fx
            + plane[low, left] * fy * (1 - fx) + plane[low, right] * fy * fx)


def naive_roi_align(features, rois, size, scale, ratio, mode, aligned):
    out = features.new_zeros(len(rois), features.shape[1], *size)
    shift = 0.5 if aligned else 0.0
    for k, roi in enumerate(rois):
        x1, y1, x2, y2 = (float(value) * scale - shift for value in roi[1:])
        height, width = y2 - y1, x2 - x1
        if not aligned:
            height, width = max(height, 1.0), max(width, 1.0)
        bins = height / size[0], width / size[1]
        grid = [ratio if ratio > 0 else -int(-extent // 1) for extent in bins]
        for c, i, j in itertools.product(range(features.shape[1]), *map(range, size)):
            values = [
                naive_sample(features[int(roi[0]), c],
                             y1 + (i + (u + 0.5) / grid[0]) * bins[0],
                             x1 + (j + (v + 0.5) / grid[1]) * bins[1])
                for u, v in itertools.product(range(grid[0]), range(grid[1]))]
            values = torch.stack(values)
            out[k, c, i, j] = values.mean() if mode == 'avg' else values.max()
    return out


# Inside, over the border on two sides, tiny, and of the second image.
ROIS = [[0, 1.0, 2.0, 11.0, 9.5], [0, -2.7, -2.3, 5.0, 25.1], [1, 4.0, 4.0, 4.6, 4.9],
        [1, 0.0, 0.0, 21.0, 13.0]]


@pytest.mark.parametrize('aligned', [True, False])
@pytest.mark.parametrize('ratio', [0, 2])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_and_its_gradient_are_the_naive_ones(mode: str, ratio: int, aligned: bool):
    features = torch.randn(2, 3, 7, 11, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor(ROIS, dtype=torch.float64)
    size = (2, 3)
    found = ops.roi_align(features, rois, size, 0.5, ratio, mode, aligned)
    expected = naive_roi_align(features, rois, size, 0.5, ratio, mode, aligned)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(found)
    grads = [torch.autograd.grad((out * weight).sum(), features)[0] for out in (found, expected)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_of_no_boxes(mode: str):
    features = torch.randn(1, 3, 7, 5, requires_grad=True)
    out = ops.roi_align(features, torch.zeros(0, 5), (2, 2), 1.0, 0, mode, True)
    out.sum().backward()
    assert out.shape == (0, 3, 2, 2) and not features.grad.any()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('mode', ['avg', 'max'])
def test_roi_align_in_half_precision_keeps_exact_coordinates(dtype: torch.dtype, mode: str):
    # 1001.5 is not a number of bfloat16: rounding the box would move it by pixels.
    rois = torch.tensor([[0, 1001.5, 3.0, 1011.5, 9.0]])
    features = torch.randn(1, 2, 13, 1024).to(dtype).requires_grad_()
    out = ops.roi_align(features, rois, (2, 2), 1.0, 2, mode, True)
    exact = ops.roi_align(features.float(), rois, (2, 2), 1.0, 2, mode, True)
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype))
    out.sum().backward()
    assert features.grad.dtype == dtype and features.grad.float().abs().sum() > 0

@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_sigmoid_focal_loss_and_its_gradient_are_the_formula(weighted: bool, dtype: torch.dtype):
    logits = torch.randn(11, 3, dtype=dtype, requires_grad=True)
    target = torch.arange(11) % 4  # 3 is background
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=dtype) if weighted else None
    found = ops.sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    truth = F.one_hot(target, 4)[:, :3]
    p = logits.sigmoid()
    p_true = torch.where(truth == 1, p, 1 - p)
    alpha = torch.where(truth == 1, 0.25, 0.75)
    expected = -alpha * (1 - p_true) ** 2 * p_true.log()
    if weighted:
        expected = expected * torch.cat([weight, torch.ones(1)])[target][:, None]
    # Float32 would not do for float64.
    close = {'rtol': 1e-13, 'atol': 1e-13} if dtype == torch.float64 else {}
    torch.testing.assert_close(found, expected, **close)
    pull = torch.randn_like(found)
    grads = [torch.autograd.grad((out * pull).sum(), logits)[0] for out in (found, expected)]
    torch.testing.assert_close(*grads, **close)


def test_sigmoid_focal_loss_is_finite_at_extreme_logits():
    logits = torch.tensor([[-200.0, 200.0]], requires_grad=True)
    loss = ops.sigmoid_focal_loss(logits, torch.tensor([0]), 2.0, 0.25, None, 'sum')
    loss.backward()
    # 0.25 * 200 for the missed class and 0.75 * 200 for the wrong one.
    assert loss.item() == pytest.approx(200.0) and logits.grad.isfinite().all()


def test_deform_conv_without_offsets_is_a_convolution():
    x, weight = torch.randn(2, 4, 7, 5), torch.randn(6, 2, 3, 3)
    offset = torch.zeros(2, 18, 4, 3)
    out = ops.deform_conv2d(x, offset, weight, 2, 1, 1, 2, 1)
    torch.testing.assert_close(out, F.conv2d(x, weight, None, 2, 1, 1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('groups, deform_groups', [(1, 1), (2, 2)])
def test_deform_conv_gradients(groups: int, deform_groups: int):
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    offset = (torch.rand(2, 18 * deform_groups, 3, 2, dtype=torch.float64) - 0.5).requires_grad_()
    weight = torch.randn(2, 4 // groups, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *args: ops.deform_conv2d(*args, 2, 1, 1, groups, deform_groups), (x, offset, weight))


@pytest.mark.parametrize('with_bias', [True, False])
def test_modulated_deform_conv_gradients(with_bias: bool):
    x = torch.randn(1, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    offset = (torch.rand(1, 18, 3, 2, dtype=torch.float64) - 0.5).requires_grad_()
    mask = torch.rand(1, 9, 3, 2, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(2, dtype=torch.float64, requires_grad=True) if with_bias else None
    assert torch.autograd.gradcheck(
        lambda *args: ops.modulated_deform_conv2d(*args, bias, 2, 1, 1, 1, 1),
        (x, offset, mask, weight))
    plain = ops.modulated_deform_conv2d(
        x, torch.zeros_like(offset), torch.ones_like(mask), weight, bias, 2, 1, 1, 1, 1)
    torch.testing.assert_close(plain, F.conv2d(x, weight, bias, 2, 1))
    if with_bias:
        (grad,) = torch.autograd.grad(plain.sum(), bias)
        assert grad.tolist() == [6.0, 6.0]


def naive_deform_conv(x, offset, mask, weight, stride, pad, dilation, groups, deform_groups):
    """One sum for each output; differentiable, and not sampled at all at -1 or below."""
    count, _, height, width = x.shape
    out_channels, in_channels, rows, columns = weight.shape
    size = [(side + 2 * pad - dilation * (k - 1) - 1) // stride + 1
            for side, k in ((height, rows), (width, columns))]
    padded = F.pad(x, (1, 1, 1, 1))
    out = x.new_zeros(count, out_channels, *size)
    per_group = x.shape[1] // deform_groups
    for n, o, i, j in itertools.product(range(count), range(out_channels), *map(range, size)):
        for c, u, v in itertools.product(*map(range, weight.shape[1:])):
            plane = o // (out_channels // groups) * in_channels + c
            point = (plane // per_group * rows + u) * columns + v
            y = i * stride - pad + u * dilation + offset[n, 2 * point, i, j]
            z = j * stride - pad + v * dilation + offset[n, 2 * point + 1, i, j]
            if not (-1 < y < height and -1 < z < width):
                continue
            top, left = math.floor(y.item()), math.floor(z.item())
            fy, fz = y - top, z - left
            window = padded[n, plane, top + 1:top + 3, left + 1:left + 3]
            value = torch.stack([1 - fy, fy]) @ window @ torch.stack([1 - fz, fz])
            out[n, o, i, j] += weight[o, c, u, v] * mask[n, point, i, j] * value
    return out


@pytest.mark.parametrize('modulated', [False, True])
@pytest.mark.parametrize('stride, pad, dilation, groups, deform_groups',
                         [(1, 1, 1, 1, 1), (2, 2, 2, 2, 2)])
def test_deform_conv_with_samples_on_whole_pixels_has_the_gradients_of_mmcv(
        stride, pad, dilation, groups, deform_groups, modulated: bool):
    # Offsets of 0, 1 and -1 put samples exactly on row and column -1, where mmcv has no gradient.
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64)
    weight = torch.randn(2, 4 // groups, 3, 2, dtype=torch.float64)
    size = [(side + 2 * pad - dilation * (k - 1) - 1) // stride + 1 for side, k in ((5, 3), (4, 2))]
    offset = torch.randint(-1, 2, (2, 12 * deform_groups, *size)).double()
    mask = torch.rand(2, 6 * deform_groups, *size, dtype=torch.float64)
    inputs = [tensor.requires_grad_() for tensor in (x, offset, mask, weight)]
    geometry = (stride, pad, dilation, groups, deform_groups)
    expected = naive_deform_conv(*inputs, *geometry)
    if modulated:
        found = ops.modulated_deform_conv2d(*inputs, None, *geometry)
    else:
        inputs = [x, offset, weight]
        found = ops.deform_conv2d(*inputs, *geometry)
        expected = naive_deform_conv(x, offset, torch.ones_like(mask), weight, *geometry)
    assert_same_with_gradients(found, expected, inputs)


def test_modulated_deform_conv_reads_the_first_numbers_of_larger_maps():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    # As DyHead passes them: two parts of one map of the next larger level, not contiguous.
    both = torch.rand(2, 27, 7, 9, dtype=torch.float64, requires_grad=True)
    offset, mask = both[:, :18], both[:, 18:]
    found = ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1, 1, 1, 1)
    small = [part.reshape(2, -1)[:, :channels * 20].reshape(2, channels, 4, 5)
             for part, channels in ((offset, 18), (mask, 9))]
    expected = ops.modulated_deform_conv2d(x, *small, weight, None, 1, 1, 1, 1, 1)
    assert torch.equal(found, expected)
    pull = torch.randn_like(found)
    grads = [torch.autograd.grad((out * pull).sum(), both, retain_graph=True)[0]
             for out in (found, expected)]
    assert torch.equal(*grads)
    assert grads[0].any() and not grads[0][:, 17].any() and not grads[0][:, 26].any()
    with pytest.raises(ValueError, match=r'offset map of shape \(2, 18, 2, 9\).*output of 4×5'):
        ops.modulated_deform_conv2d(x, offset[:, :, :2], mask, weight, None, 1, 1, 1, 1, 1)


def test_dyhead_trains():
    from mmdet.models.necks import DyHead

    neck = DyHead(in_channels=8, out_channels=16, num_blocks=2)
    levels = [torch.randn(2, 8, 16 // 2**i, 12 // 2**i, requires_grad=True) for i in range(3)]
    outs = neck(levels)
    assert [out.shape[2:] for out in outs] == [level.shape[2:] for level in levels]
    sum(out.square().sum() for out in outs).backward()
    assert all(parameter.grad is not None for parameter in neck.parameters())
    assert all(level.grad.isfinite().all() and level.grad.any() for level in levels)


def test_ms_deform_attn_forward_and_gradients_are_the_formula_of_mmcv():
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )
    shapes = torch.tensor([[5, 3], [2, 4]])
    inputs = [torch.randn(2, 23, 2, 3), torch.rand(2, 7, 2, 2, 4, 2), torch.rand(2, 7, 2, 2, 4)]
    inputs = [tensor.double().requires_grad_() for tensor in inputs]
    found = MultiScaleDeformableAttnFunction.apply(
        inputs[0], shapes, torch.tensor([0, 15]), inputs[1], inputs[2], 64)
    expected = multi_scale_deformable_attn_pytorch(inputs[0], shapes, inputs[1], inputs[2])
    assert_same_with_gradients(found, expected, inputs)


def test_ms_deform_attn_has_no_gradient_for_a_location_on_row_or_column_minus_one():
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
    # One level of 4×4, so that pixel -1 is at -1/8 and pixel 1 at 3/8, both exact in float32.
    where = torch.tensor([[-1 / 8, 3 / 8], [3 / 8, -1 / 8], [1 / 8, 1 / 8]]).view(1, 3, 1, 1, 1, 2)
    where.requires_grad_()
    out = MultiScaleDeformableAttnFunction.apply(
        torch.arange(1., 17).view(1, 16, 1, 1), torch.tensor([[4, 4]]), torch.tensor([0]), where,
        torch.ones(1, 3, 1, 1, 1), 64)
    out.sum().backward()
    # Pixel (0, 0) of the last: its right neighbour is 1 more, the lower one 4, each 1/4 away.
    assert where.grad.flatten().tolist() == [0, 0, 0, 0, 4, 16]


def test_gaussian_soft_nms_keeps_boxes_without_area():
    from mmcv.ops import soft_nms
    boxes = torch.tensor([[5., 5., 5., 5.], [5., 5., 5., 5.], [0., 0., 10., 10.]])
    dets, kept = soft_nms(boxes, torch.tensor([.9, .8, .7]), method='gaussian')
    assert sorted(kept.tolist()) == [0, 1, 2] and dets.isfinite().all()
