#!/usr/bin/env python
"""Measure what can be exported, and write the table in docs/deployment.md.

    python tools/export_table.py                          # the table, from docs/exports.json
    python tools/export_table.py --measure                # all that is not measured; two hours
    python tools/export_table.py --measure CSWin/UPerNet/any
    python tools/export_table.py --measure CSWin/UPerNet/aoti

What is measured is FAMILY/HEAD/SIZE; parts at the end may be left out. It exports a tiny model with
random weights in all formats, and compares the files with the model at several sizes (one for a
fixed size). Of UPerNet, half and aoti in place of SIZE measure a file of that kind.
"""
from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import _checkout  # noqa: F401  (first)
import numpy as np
import torch

import visattn_dense  # noqa: F401  (mends and registers)
from visattn_dense.atomic import write_text_whole
from visattn_dense.errors import UserError
from visattn_dense.predict.card import Card
from visattn_dense.predict.exported import Exported

ROOT = Path(__file__).resolve().parents[1]
PAGE, RESULTS = ROOT / 'docs' / 'deployment.md', ROOT / 'docs' / 'exports.json'
BEGIN = '<!-- exports: python tools/export_table.py writes from here -->\n'
END = '<!-- exports: to here -->\n'

_CROSS = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(2, 4, 4, 8),
              stripe_widths=(1, 2, 7, 7))
FAMILIES = {
    'CSWin': dict(type='CSWin', arch=_CROSS),
    'FLatten-CSWin': dict(type='FLattenCSWin', arch=_CROSS),
    'BiFormer': dict(type='BiFormer', n_win=4, topks=(1, 2, 4, -2), head_dim=16, arch=dict(
        embed_dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), mlp_ratio=2, overlapping=True)),
    'EfficientViT': dict(type='EfficientViT', arch='b0'),
    'T2T-ViT': dict(type='T2TViT', arch='7'),
}
HEADS = {'UPerNet': 'upernet', 'Semantic FPN': 'semantic_fpn', 'EfficientViT head':
         'efficientvit_seg', 'RetinaNet': 'retinanet_fpn', 'Mask R-CNN': 'mask_rcnn_fpn',
         'Cascade Mask R-CNN': 'cascade'}
FORMATS = {'onnx': '.onnx', 'torch-export': '.pt2'}
SIZES = {'fixed': (96, 128), 'any': None}
# Of segmentors (True) and detectors, whose configs pad to multiples of 32; the file was traced at
# another size.
OTHER_SIZES = {True: [(64, 64), (97, 135), (192, 250)],
               False: [(32, 32), (64, 64), (96, 160), (192, 256)]}
# Kinds of files of UPerNet, of the fixed size: format, and whether they compute in float16.
KINDS = {'half': ('onnx', True), 'aoti': ('aoti', False)}


def model_config(family: str, head: str) -> dict:
    """The project's config of a head, made narrow, on a tiny backbone of a family."""
    from mmengine.config import Config
    from mmengine.registry import MODELS
    file = HEADS[head]
    path = ('cascade_mask_rcnn_cswin_tiny_coco' if file == 'cascade' else f'_base_/models/{file}')
    cfg = Config(Config.fromfile(ROOT / f'configs/{path}.py').model.to_dict())
    backbone = dict(FAMILIES[family])
    if file == 'retinanet_fpn':
        backbone['out_indices'] = (1, 2, 3)
    channels = list(MODELS.build(dict(backbone)).out_channels)
    cfg.backbone = backbone
    cfg.pop('auxiliary_head', None)
    if 'neck' in cfg:
        cfg.neck.update(in_channels=channels, out_channels=16)
    if file == 'upernet':
        cfg.decode_head.update(in_channels=channels, channels=16, num_classes=5)
    elif file == 'semantic_fpn':
        cfg.decode_head.update(in_channels=[16] * 4, channels=16, num_classes=5)
    elif file == 'efficientvit_seg':
        cfg.decode_head.update(in_channels=channels[1:], width=16, depth=1, num_classes=5)
    elif file == 'retinanet_fpn':
        cfg.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1, num_classes=3)
    else:
        cfg.rpn_head.update(in_channels=16, feat_channels=16)
        roi, narrow = cfg.roi_head, dict(in_channels=16, num_classes=3)
        roi.bbox_roi_extractor.out_channels = roi.mask_roi_extractor.out_channels = 16
        roi.mask_head.update(narrow, num_convs=1, conv_out_channels=16)
        for one in roi.bbox_head if isinstance(roi.bbox_head, list) else [roi.bbox_head]:
            one.update(narrow, fc_out_channels=32)
            if 'conv_out_channels' in one:
                one.update(conv_out_channels=16)
        cfg.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    return cfg.to_dict()


def build(family: str, head: str) -> torch.nn.Module:
    """The model, with random weights that find something."""
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS, DefaultScope

    from visattn_dense.openmmlab.engine.launch import register_scope
    scope = 'mmseg' if HEADS[head] in ('upernet', 'semantic_fpn', 'efficientvit_seg') else 'mmdet'
    register_scope(scope)
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(scope):
        cfg = Config(dict(model=model_config(family, head))).model
        model = revert_sync_batchnorm(MODELS.build(cfg)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel()**-0.5)
    return model


def subject(family: str, head: str) -> tuple[SimpleNamespace, Card]:
    """A model as `trace` takes it, and its card."""
    model = build(family, head)
    segments = hasattr(model, 'decode_head')
    classes = ['a', 'b', 'c', 'd', 'e'][:5 if segments else 3]
    task = 'segmentation' if segments else 'detection' if head == 'RetinaNet' else 'instances'
    return SimpleNamespace(model=model), Card(
        classes=classes, palette=[[0, 0, 0]] * len(classes), mean=[0.] * 3, std=[1.] * 3, steps=[],
        task=task, thresholds=dict(score=0.05, nms=0.5, mask=0.5))


def measure(family: str, head: str, size: str, formats: Sequence[str] = tuple(FORMATS)
            ) -> list[str]:
    """What came out, for each format: the largest difference over the largest value, or why there
    is no file. One trace serves all formats."""
    from visattn_dense.openmmlab.detection_graph import DetectionGraph
    from visattn_dense.openmmlab.export import Graph, trace, write
    from visattn_dense.predictor import Predictor
    model, card = subject(family, head)
    segments = card.task == 'segmentation'
    graph = (Graph(model, card) if segments else DetectionGraph(model.model, card)).eval()
    try:
        program, inputs = trace(model, card, SIZES[size])
    except UserError as error:
        return [str(error)] * len(formats)
    cases = []
    for shape in [SIZES['fixed']] if SIZES[size] else OTHER_SIZES[segments]:
        image = torch.randn(1, 3, *shape)
        given = [image] if segments else [image, torch.tensor([shape[0] - 6, shape[1] - 11])]
        with torch.no_grad():
            expected = graph(*given)
        cases.append((given, [expected] if segments else list(expected)))
    outcomes = []
    for to in formats:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, 'model' + FORMATS[to])
            try:
                write(program, inputs, card, path, to=to, size=SIZES[size])
            except UserError as error:
                outcomes.append(str(error))
            else:
                outcomes.append(compared(Predictor(path).runtime, cases))
    return outcomes


def measure_kind(family: str, kind: str) -> list[str]:
    """The share of equal labels and the largest difference of a file of UPerNet on ten inputs, or
    why there is no file."""
    from visattn_dense.openmmlab.export import FORMATS as SUFFIXES
    from visattn_dense.openmmlab.export import Graph, export
    from visattn_dense.predictor import Predictor
    (model, card), (to, half) = subject(family, 'UPerNet'), KINDS[kind]
    graph, equal, difference, scale = Graph(model, card).eval(), [], 0., 0.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, 'model' + SUFFIXES[to])
        try:
            export(model, card, path, to=to, size=SIZES['fixed'], half=half)
            runtime = Predictor(path).runtime
            for number in range(10):
                image = torch.randn(1, 3, *SIZES['fixed'])
                if half and number % 2:
                    image[..., image.shape[3] // 2:] = 0.
                with torch.no_grad():
                    expected = graph(image).numpy()
                (found,) = runtime.compute(image.numpy())
                equal.append((found.argmax(1) == expected.argmax(1)).mean())
                difference = np.maximum(difference, np.abs(found - expected).max())
                scale = max(scale, np.abs(expected).max())
        except UserError as error:
            return [str(error).replace(str(path), path.name)]
    return [f'{np.mean(equal):.2%}, {difference / scale:.0e}']


def compared(runtime: Exported, cases: Sequence[tuple[list[torch.Tensor], list[torch.Tensor]]]
             ) -> str:
    """The largest difference of a file on pairs of inputs and expected outputs, or its failure.

    NMS decides by thresholds, so rounding may exchange an object: of detectors, one object in fifty
    may be another, and is counted.
    """
    differences: list[float] = []
    for inputs, expected in cases:
        at = 'at {}x{}'.format(*inputs[0].shape[2:])
        try:
            found = runtime.compute(*(part.numpy() for part in inputs))
        # The runtimes raise errors of many kinds.
        except Exception as error:
            # Without the temporary folder: the same text in every run.
            origin = Path(runtime.origin)
            reason = str(error).splitlines()[0].replace(str(origin), origin.name)
            return f'the file fails {at}: {reason}'
        expected = [part.numpy().astype(np.float64) for part in expected]
        for one, other in zip(found, expected, strict=True):
            if one.shape[1:] != other.shape[1:]:
                return f'the file gives {one.shape} {at}, the model {other.shape}'
        differences += apart(found, expected)
    others = sum(not difference < 1e-3 for difference in differences)
    if others > len(differences) / 50:
        return f'differs by {max(differences):.0e}'
    worst = f'{max(difference for difference in differences if difference < 1e-3):.0e}'
    return f'{worst}; {others} of {len(differences)} objects differ' if others else worst


def apart(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> list[float]:
    """How much each entry of a file's outputs differs from the model's, over the largest value.

    An entry is a logit map, or an object with all that belongs to it. Objects are paired: those of
    nearly equal scores may have changed places. One without a partner differs by infinity.
    """
    from scipy.optimize import linear_sum_assignment
    distances = []
    for one, other in zip(found, expected, strict=True):
        scale = max(np.abs(other).max(initial=0.), np.finfo(float).tiny)
        distances.append(np.array([np.abs(one - row).max(tuple(range(1, one.ndim))) / scale
                                   for row in other]).reshape(len(other), len(one)))
    # NaN is as far as can be.
    distance = np.nan_to_num(np.maximum.reduce(distances), nan=np.inf, posinf=np.inf)
    pairs = linear_sum_assignment(np.minimum(distance, 1e9))
    lonely = max(distance.shape) - min(distance.shape)
    return [*distance[pairs].tolist(), *[float('inf')] * lonely]


def table(results: dict[str, str]) -> str:
    """The table of docs/deployment.md, and the reasons below it."""
    reasons: dict[str, int] = {}

    def cell(key: str) -> str:
        outcome = results.get(key)
        if outcome is None:
            return 'not tried'
        if outcome[0].isdigit():
            return outcome
        return f'no ({reasons.setdefault(outcome, len(reasons) + 1)})'

    columns = [(to, size) for to in FORMATS for size in SIZES]
    lines = ['| family | head | ' + ' | '.join(f'{to}, {size} size' for to, size in columns) + ' |',
             '|---|---|' + '---|' * len(columns)]
    for family in FAMILIES:
        for head in HEADS:
            cells = ' | '.join(cell(f'{family}/{head}/{to}/{size}') for to, size in columns)
            lines.append(f'| {family} | {head} | {cells} |')
    notes = [f'{number}. {reason}' for reason, number in reasons.items()]
    kinds = ['| family | ' + ' | '.join(KINDS) + ' |', '|---|' + '---|' * len(KINDS)]
    for family in FAMILIES:
        outcomes = (results.get(f'{family}/UPerNet/{kind}', 'not tried') for kind in KINDS)
        kinds.append(f'| {family} | ' + ' | '.join(outcomes) + ' |')
    return '\n'.join(['', *lines, '', *notes, *([''] if notes else []),
                      'UPerNet in other kinds of files, of 96x128: the share of equal labels, and '
                      'the largest difference over the\nlargest value, on ten inputs. `half` is '
                      '`--to onnx --half`; the right halves of five of its inputs are zeros, as\n'
                      'padding is. `aoti` is `--to aoti`.\n', *kinds, '', ''])


def page(text: str, results: dict[str, str]) -> str:
    """`text` of docs/deployment.md with the present table."""
    before, rest = text.split(BEGIN)
    return f'{before}{BEGIN}{table(results)}{END}{rest.split(END)[1]}'


def cells() -> Iterator[tuple[str, list[str], Callable[[], list[str]]]]:
    """The name of each cell that can be measured, its keys in the results, what measures it."""
    for family, head, size in itertools.product(FAMILIES, HEADS, SIZES):
        keys = [f'{family}/{head}/{to}/{size}' for to in FORMATS]
        yield f'{family}/{head}/{size}', keys, partial(measure, family, head, size)
    for family, kind in itertools.product(FAMILIES, KINDS):
        key = f'{family}/UPerNet/{kind}'
        yield key, [key], partial(measure_kind, family, kind)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog='export_table.py', description='Measure what can be '
                                     'exported, and write the table in docs/deployment.md.')
    parser.add_argument('--measure', nargs='*', metavar='CELL', help='measure FAMILY/HEAD/SIZE, '
                        'or FAMILY/UPerNet/half or aoti, again; without one, all that is not '
                        'measured')
    args = parser.parse_args(arguments)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for cell, keys, compute in [] if args.measure is None else cells():
        wanted = cell.startswith(tuple(args.measure)) if args.measure else (
            not set(keys) <= set(results))
        if not wanted:
            continue
        outcomes = compute()
        results.update(zip(keys, outcomes, strict=True))
        print(f'{cell}: {", ".join(outcomes)}', flush=True)
        write_text_whole(RESULTS, json.dumps(dict(sorted(results.items())), indent=1) + '\n')
    write_text_whole(PAGE, page(PAGE.read_text(encoding='utf-8'), results))
    print(f'wrote {PAGE}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
