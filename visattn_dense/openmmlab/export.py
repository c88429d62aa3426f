"""A trained segmentor or detector as one file that computes without OpenMMLab.

    export(model, card, 'model.onnx', to='onnx', size=(512, 512))

onnx          for onnxruntime and others; needs no torch
torch-export  a program of torch.export (.pt2), for Python with torch
aoti          the same, compiled to a library for this machine (.pt2), for Python and C++ with torch
"""
from __future__ import annotations

import contextlib
import json
import logging
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.fx.experimental._config as fx_config
import torch.nn.functional as F
from mmengine.config import Config
from torch import Tensor, nn
from torch._library.fake_impl import FakeImplCtx

import visattn_dense
from visattn_dense.atomic import written_whole
from visattn_dense.errors import UserError
from visattn_dense.inference.detector import Detector
from visattn_dense.inference.exported import without_guards
from visattn_dense.inference.segmentor import Segmentor
from visattn_dense.openmmlab.config import dataset_of_test
from visattn_dense.openmmlab.detection_graph import DetectionGraph, check_detector
from visattn_dense.openmmlab.half import compute_in_half
from visattn_dense.openmmlab.inference import steps_of_test
from visattn_dense.openmmlab.onnx_operators import translations
from visattn_dense.ops.choose import use_implementation
from visattn_dense.predict.card import Card, Step

FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2', 'aoti': '.pt2'}
"""The formats, and the suffix of their files."""
# Not a size of training, such as 224: a model that resizes a table of positions would leave it out
# for this size, and then for all.
_EXAMPLE = (208, 272)
# Backbones pad smaller images inside, and a trace leaves that padding out.
_SMALLEST_SIDE = 4


def make_card(cfg: Config, model: Segmentor | Detector, *, size: tuple[int, int] | None,
              pre_and_post: bool = False, license: str = 'not stated') -> Card:
    """What the file will say about itself.

    Args:
        cfg: the config of the model.
        model: the opened model.
        size: (H, W) of the model's input, into which pictures are fitted; None for any size, to
            which the steps of the config's test pipeline lead.
        pre_and_post: see `Graph`.
        license: of the weights.

    Raises:
        UserError: the test pipeline has a step, or the model has an input, that the file cannot
            describe; or the export does not know the detector.
    """
    preprocessor = model.model.data_preprocessor
    mean, std = (torch.as_tensor(getattr(preprocessor, name, [0. if name == 'mean' else 1.] * 3)
                                 ).flatten().tolist() for name in ('mean', 'std'))
    if len(mean) != 3:
        raise UserError(f'the export takes models of three colours, and this model has {len(mean)} '
                        'channels')
    if size is None:
        steps = _steps(cfg, getattr(preprocessor, 'test_cfg', None) or dict(
            size_divisor=getattr(preprocessor, 'pad_size_divisor', 0)))
    else:
        steps = [dict(do='fit', size=list(size)), dict(do='pad', size=list(size))]
    # mmengine's and mmsegmentation's name of the same.
    swaps = getattr(preprocessor, '_channel_conversion', None)
    swaps = preprocessor.channel_conversion if swaps is None else swaps
    about = _about_detector if isinstance(model, Detector) else _about_segmentor
    return Card(
        classes=list(model.classes), palette=[list(map(int, c)) for c in model.palette],
        mean=mean, std=std, steps=steps,
        # The images of OpenMMLab come as BGR; its numbers have the order that the model takes.
        channels='rgb' if swaps else 'bgr',
        pre_and_post=pre_and_post, license=license, versions=_versions(), **about(model))


def _about_segmentor(segmentor: Segmentor) -> dict[str, Any]:
    several = isinstance(segmentor.model.decode_head, nn.ModuleList)
    return dict(align_corners=bool(segmentor.model.align_corners),
                threshold=0.3 if several else float(segmentor.threshold))


def _about_detector(detector: Detector) -> dict[str, Any]:
    check_detector(detector.model)
    last = getattr(detector.model, 'roi_head', None) or detector.model.bbox_head
    cfg = last.test_cfg
    thresholds = dict(score=float(cfg.get('score_thr', 0.)), nms=float(cfg.nms.iou_threshold))
    if detector.has_masks:
        thresholds['mask'] = float(cfg.mask_thr_binary)
    return dict(task='instances' if detector.has_masks else 'detection', thresholds=thresholds,
                max_per_image=cfg.max_per_img if cfg.max_per_img > 0 else None)


def config_size(cfg: Config) -> tuple[int, int]:
    """(H, W) of a detector's inputs: the scale of its test pipeline, lying, in multiples of 32.

    Raises:
        UserError: the pipeline has no scale.
    """
    for step in steps_of_test(cfg):
        scale = step.get('scale')
        if step['type'] == 'Resize' and isinstance(scale, (tuple, list)):
            return tuple(-(-side // 32) * 32 for side in sorted(scale))
    raise UserError('the test pipeline has no Resize with a scale: name a size with --size HxW')


def _steps(cfg: Config, padding: Mapping[str, Any]) -> list[Step]:
    """The resizing of a config's test pipeline, and the padding of its data_preprocessor."""
    steps: list[Step] = []
    for step in steps_of_test(cfg)[1:]:
        kind, method = step['type'], step.get('interpolation', 'bilinear')
        if kind.endswith('Annotations') or kind.endswith(('PackSegInputs', 'PackDetInputs')):
            continue
        # Pillow smooths where it shrinks.
        known = method in ('bilinear', 'bicubic') and step.get('backend', 'cv2') == 'cv2'
        scale = step.get('scale')
        if kind == 'Resize' and scale is not None and known:
            scale = [scale, scale] if isinstance(scale, int) else list(scale)
            steps.append(dict(do='resize', scale=scale, method=method,
                              keep_ratio=bool(step.get('keep_ratio', False))))
        elif kind == 'ResizeToMultiple' and known:
            steps.append(dict(do='multiple', of=int(step.get('size_divisor', 32)), method=method))
        else:
            raise UserError(f'the file cannot describe the step {dict(step)} of the test pipeline; '
                            'export a fixed size (--size HxW)')
    if padding.get('size'):
        steps.append(dict(do='pad', size=list(padding['size'])))
    elif padding.get('size_divisor'):
        steps.append(dict(do='pad', of=int(padding['size_divisor'])))
    return steps


def _versions() -> dict[str, str]:
    found = dict(python=platform.python_version(), visattn_dense=visattn_dense.__version__)
    for name in ('torch', 'torchvision', 'mmsegmentation', 'mmdet', 'onnx', 'onnxscript'):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


class Graph(nn.Module):
    """What the file of a segmentor computes; for detectors see `DetectionGraph`.

    Without pre_and_post: image (1, 3, H, W) float32, normalised, to logits (1, C, H, W) float32.
    With it: image (1, H, W, 3) uint8, to labels (1, H, W) uint8 (int32 from 256 classes on) and
    confidence (1, H, W) float32, the probability of the label.

    Args:
        segmentor: its model is copied.
        card: of the file.
        half: compute in float16.
    """

    def __init__(self, segmentor: Segmentor, card: Card, half: bool = False) -> None:
        super().__init__()
        self.model = _traceable(deepcopy(segmentor.model).eval())
        self.dtype = torch.float16 if half else torch.float32
        if half:
            compute_in_half(self.model)
        self.pre_and_post, self.threshold = card.pre_and_post, card.threshold
        self.label_dtype = torch.uint8 if len(card.classes) < 256 else torch.int32
        self.register_buffer('mean', torch.tensor(card.mean)[:, None, None], persistent=False)
        self.register_buffer('std', torch.tensor(card.std)[:, None, None], persistent=False)

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.pre_and_post:
            image = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        size = image.shape[2:]
        logits = self.model.encode_decode(
            image.to(self.dtype), [dict(img_shape=size, ori_shape=size, pad_shape=size)]).float()
        if not self.pre_and_post:
            return logits
        if logits.shape[1] == 1:
            positive = logits[:, 0].sigmoid()
            labels = positive > self.threshold
            return labels.to(self.label_dtype), torch.where(labels, positive, 1 - positive)
        confidence, labels = logits.softmax(1).max(1)
        return labels.to(self.label_dtype), confidence


class AveragePool(nn.Module):
    """`nn.AdaptiveAvgPool2d` as two products, which an exporter can keep for every size.

    out = A_h x A_wᵀ, where row i of A_n averages the positions from ⌊i n / s⌋ to ⌈(i + 1) n / s⌉.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.size = (output_size,) * 2 if isinstance(output_size, int) else tuple(output_size)

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (self._matrix(x, axis, side) for axis, side in zip((2, 3), self.size,
                                                                           strict=True))
        return rows @ x @ columns.transpose(0, 1)

    def _matrix(self, x: Tensor, axis: int, side: int | None) -> Tensor:
        length = x.shape[axis]
        side = length if side is None else side
        part = torch.arange(side, device=x.device)[:, None]
        place = torch.arange(length, device=x.device)
        inside = (place >= part * length // side) & (place < -(-(part + 1) * length // side))
        inside = inside.to(x.dtype)
        return inside / inside.sum(1, keepdim=True)


class Upscale(nn.Module):
    """mmseg's `Upsample` by a whole factor, which an exporter can keep for every size.

    mmseg computes the size as `int(length * 2.0)`: `int` makes a number of the traced image of it.
    """

    def __init__(self, factor: int, mode: str, align_corners: bool | None) -> None:
        super().__init__()
        self.factor, self.mode, self.align_corners = factor, mode, align_corners

    def forward(self, x: Tensor) -> Tensor:
        size = [length * self.factor for length in x.shape[2:]]
        return F.interpolate(x, size, mode=self.mode, align_corners=self.align_corners)


def _traceable(model: nn.Module) -> nn.Module:
    from mmseg.models.utils import Upsample
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                setattr(parent, name, AveragePool(child.output_size))
            elif type(child) is Upsample and not child.size and isinstance(
                    child.scale_factor, float) and child.scale_factor.is_integer():
                setattr(parent, name, Upscale(int(child.scale_factor), child.mode,
                                              child.align_corners))
    return model


@torch.no_grad()
def export(model: Segmentor | Detector, card: Card, path: str | os.PathLike, *, to: str,
           size: tuple[int, int] | None, half: bool = False) -> Card:
    """Write the file of a model on a CPU.

    Args:
        model: on the CPU.
        card: from `make_card`, for the same size.
        path: of the new file; it is there whole or not at all.
        to: a key of `FORMATS`.
        size: (H, W) of the input; None for any size to which the steps of the card lead.
        half: compute in float16.

    Returns:
        The card in the file: of a file for any size with its smallest side.

    Raises:
        UserError: the package of the format is missing, or the exporter cannot trace the model.
    """
    if to == 'onnx':
        _need_onnx()
    return write(*trace(model, card, size, half), card, path, to=to, size=size)


@torch.no_grad()
def trace(model: Segmentor | Detector, card: Card, size: tuple[int, int] | None,
          half: bool = False) -> tuple[Any, dict[str, Tensor]]:
    """The program of a model, by torch.export, and inputs by their names; see `export`."""
    height, width = size or _EXAMPLE
    image = (torch.zeros(1, height, width, 3, dtype=torch.uint8) if card.pre_and_post else
             torch.zeros(1, 3, height, width))
    if card.task == 'segmentation':
        graph, inputs = Graph(model, card, half), dict(image=image)
    else:
        graph = DetectionGraph(model.model, card, half)
        inputs = dict(image=image, content=torch.tensor([height, width]))
    axis = 1 if card.pre_and_post else 2
    shapes = None if size else {name: {axis: torch.export.Dim.DYNAMIC,
                                       axis + 1: torch.export.Dim.DYNAMIC}
                                if name == 'image' else None for name in inputs}
    # Routed attention is an operator of ours, which no other runtime knows.
    with use_implementation('reference', operator='routed_attention'), _exporting():
        try:
            program = torch.export.export(graph.eval(), tuple(inputs.values()),
                                          dynamic_shapes=shapes, strict=False)
        # The exporter raises errors of many kinds.
        except Exception as error:
            raise UserError(f'torch.export cannot trace this model{_at(size)}: '
                            f'{_first_line(error)}') from error
        if size is None:
            _allow_small_sides(program, graph, inputs)
    return program, inputs


def _allow_small_sides(program: Any, graph: nn.Module, inputs: Mapping[str, Tensor]) -> None:
    """Let a program for any size take sides from `_SMALLEST_SIDE` on, if it is right there.

    torch notes of each map of the example that its sides are longer than 1, and refuses inputs with
    a shorter one: with a map of stride 128, sides below 129. torch asks in order to choose a memory
    layout, which changes no number. So both compute the smallest image, of which each map has one
    place. If the program fails or differs, torch's range stays.
    """
    ranges = program.range_constraints
    former = {symbol: ranges[symbol] for symbol in _open_sides(program)}
    ranges.update({symbol: type(one)(_SMALLEST_SIDE, one.upper) for symbol, one in former.items()})
    small = [_smallest(part) for part in inputs.values()]
    try:
        torch.testing.assert_close(without_guards(program)(*small), graph(*small),
                                   rtol=1e-2, atol=1e-2)
    # Operators raise errors of many kinds for a size that they do not take.
    except Exception:
        ranges.update(former)


def _smallest(part: Tensor) -> Tensor:
    """The smallest value of an input of the example: an image, or the size of its content."""
    if part.ndim == 1:
        return torch.full_like(part, _SMALLEST_SIDE)
    numbers = torch.randn([_SMALLEST_SIDE if side in _EXAMPLE else side for side in part.shape],
                          generator=torch.Generator().manual_seed(0))
    return (numbers.sigmoid() * 255).to(part.dtype) if part.dtype == torch.uint8 else numbers


def _open_sides(program: Any) -> list[Any]:
    """The symbols of the image's sides in a program for any size."""
    (image, *_) = (node for node in program.graph.nodes if node.name == 'image')
    return [side.node.expr for side in image.meta['val'].shape
            if isinstance(side, torch.SymInt) and side.node.expr in program.range_constraints]


@torch.no_grad()
def write(program: Any, inputs: Mapping[str, Tensor], card: Card, path: str | os.PathLike, *,
          to: str, size: tuple[int, int] | None) -> Card:
    """Write what `trace` gave as a file of a format; see `export`."""
    if size is None:
        card = replace(card, smallest_side=max(
            (int(program.range_constraints[side].lower) for side in _open_sides(program)),
            default=1))
    with _exporting(), written_whole(path) as temporary:
        _WRITE[to](program, inputs, card, temporary, _at(size))
    return card


@contextlib.contextmanager
def _exporting() -> Iterator[None]:
    """No fixed answer where the program asks if an open length is 1: a file for any size is then
    one for small sizes too, and is traced in a quarter of the time."""
    with contextlib.ExitStack() as stack:
        # torchvision asks for the number of boxes that NMS keeps by a former name, which means two
        # boxes or more: the program would refuse a picture with fewer.
        stack.enter_context(mock.patch.object(FakeImplCtx, 'create_unbacked_symint',
                                              FakeImplCtx.new_dynamic_size))
        if hasattr(fx_config, 'backed_size_oblivious'):
            stack.enter_context(fx_config.patch(backed_size_oblivious=True))
        yield


def _at(size: tuple[int, int] | None) -> str:
    return ' for any size (try --size HxW)' if size is None else f' at {size[0]}x{size[1]}'


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f'{type(error).__name__}: {lines[0] if lines else ""}'


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f'the export to ONNX needs the package {error.name}: '
                        "pip install 'visattn-dense[export]'") from error


def _write_onnx(program: Any, inputs: Mapping[str, Tensor], card: Card, path: Path, at: str
                ) -> None:
    names, table = ['boxes', 'scores', 'labels'], None
    if card.task == 'segmentation':
        names = ['labels', 'confidence'] if card.pre_and_post else ['logits']
    else:
        table = translations()
        names += ['masks'] if card.task == 'instances' else []
    quiet = logging.getLogger('onnxscript')
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        written = torch.onnx.export(
            program, tuple(inputs.values()), dynamo=True, input_names=list(inputs),
            output_names=names, custom_translation_table=table, verbose=False, optimize=False)
        _keep_small_terms(written.model)
        written.optimize()
    except Exception as error:
        raise UserError(f'torch.onnx cannot write this model{at}: {_first_line(error)}') from error
    finally:
        quiet.setLevel(level)
    written.model.metadata_props.update(card.strings())
    written.save(path)


def _keep_small_terms(model: Any) -> None:
    """Give an axis to each constant of at most 1e-8 that is added.

    The optimizer takes such a scalar for 0 and drops the sum. The denominators of linear attention
    then lose their epsilon: 1e-8 in T2T-ViT, 1e-15 in EfficientViT.
    """
    import onnx_ir
    for node in onnx_ir.traversal.RecursiveGraphIterator(model.graph):
        value = node.attributes['value'].as_tensor() if node.op_type == 'Constant' and (
            'value' in node.attributes) else None
        if value is None or value.size != 1 or value.shape.rank() != 0:
            continue
        users = {use.node.op_type for use in node.outputs[0].uses()}
        if 0 < abs(float(value.numpy())) <= 1e-8 and users <= {'Add', 'Sub'}:
            node.attributes['value'] = onnx_ir.AttrTensor('value', onnx_ir.tensor(
                value.numpy().reshape(1)))


def _write_program(program: Any, inputs: Mapping[str, Tensor], card: Card, path: Path, at: str
                   ) -> None:
    # torch.export.save asks for the suffix of the final name.
    with open(path, 'wb') as file:
        torch.export.save(program, file, extra_files={'card.json': json.dumps(card.strings())})


def _write_library(program: Any, inputs: Mapping[str, Tensor], card: Card, path: Path, at: str
                   ) -> None:
    package = path.with_name(f'{path.name}.pt2')
    options: dict[str, Any] = {'aot_inductor.metadata': card.strings()}
    if card.task != 'segmentation':
        # With it, torch 2.15 computes wrong masks and boxes: it mistakes the layout between two
        # convolutions whose batch is the number of objects.
        options['layout_optimization'] = False
    try:
        torch._inductor.aoti_compile_and_package(program, package_path=str(package),
                                                 inductor_configs=options)
        os.replace(package, path)
    except Exception as error:
        raise UserError(f'torch cannot compile this model{at}: {_first_line(error)}; a compiler '
                        'for C++ is needed') from error
    finally:
        package.unlink(missing_ok=True)


_WRITE = {'onnx': _write_onnx, 'torch-export': _write_program, 'aoti': _write_library}


def sample_images(cfg: Config, count: int) -> Sequence[Path]:
    """Paths of the first images of the config's test data set; none where it has none."""
    dataset = dataset_of_test(cfg)
    prefix = dataset.get('data_prefix') or {}
    parts = [*filter(None, (dataset.get('data_root'), prefix.get('img_path') or prefix.get('img')))]
    folder = Path(*parts)
    suffixes = [dataset['img_suffix']] if 'img_suffix' in dataset else ['.jpg', '.jpeg', '.png']
    found = (path for suffix in suffixes for path in folder.rglob(f'*{suffix}'))
    return sorted(found)[:count] if parts and folder.is_dir() else []
