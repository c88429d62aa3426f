"""Turn a training config into one run of evaluation on a checkpoint."""
from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from typing import Any

from mmengine.config import Config, ConfigDict
from mmengine.dist import get_dist_info

from visattn_dense.checkpoints import read_checkpoint, unwrap
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.config import dataset_of_test, entries, type_name
from visattn_dense.openmmlab.engine import checks
from visattn_dense.openmmlab.engine.painting import painted_name, painted_root
from visattn_dense.openmmlab.engine.prediction_files import (
    check_not_replaced,
    images_of,
    prediction_of,
    read_test_data,
    root_of,
)


def check_checkpoint(source: str) -> None:
    """Check that `source` is a checkpoint that can be read. Executes nothing from the file.

    Raises:
        FileNotFoundError, UserError: the file does not exist, is damaged, or holds no weights.
    """
    # An address is checked when the run loads it.
    if '://' not in source:
        unwrap(read_checkpoint(source, mmap=True))


def prepare_test(cfg: Config, args: Any) -> None:
    """Apply the options of tools/test.py to `cfg`."""
    cfg.load_from = args.checkpoint
    cfg.resume = False
    cfg.train_dataloader = cfg.train_cfg = cfg.optim_wrapper = cfg.param_scheduler = None
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    detection = cfg.get('default_scope') == 'mmdet'
    # --show-dir and --out ask for the same data set.
    test_data = cache(lambda: _test_data(cfg))
    if args.show or args.show_dir:
        _draw(cfg, args, detection, test_data)
    if args.tta:
        if detection and any(entry.get('mask_head') or entry.get('panoptic_head')
                             for _, entry in entries(cfg.model)):
            raise UserError('--tta: mmdetection merges boxes only, and this model finds masks too')
        augment(cfg, detection)
    if args.out:
        _write_predictions(cfg, args.out, detection, test_data)


def _draw(cfg: Config, args: Any, detection: bool, test_data: Callable[[], Any]) -> None:
    if get_dist_info()[1] > 1:
        # mmengine's visualizer does nothing in the other processes.
        raise UserError('--show and --show-dir paint in the first process alone, a part of the '
                        'images: start tools/test.py as one process, without a launcher')
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    kind = 'Det' if detection else 'Seg'
    hook = hooks.get('visualization') or ConfigDict(type=f'{kind}VisualizationHook')
    # mmengine's own visualizer, which a config without one has, paints no predictions.
    cfg.visualizer = cfg.get('visualizer') or ConfigDict(type=f'{kind}LocalVisualizer')
    if args.show_dir:
        checks.check_folder(args.show_dir, 'the folder of pictures', '--show-dir')
        dataset = test_data()
        images = images_of(dataset)
        folder, root = os.path.abspath(args.show_dir), painted_root(images)
        check_not_replaced((os.path.join(folder, painted_name(image, root)) for image in images),
                           dataset, f'--show-dir {args.show_dir}')
        hooks.visualization = dict(
            type='PaintHook', folder=folder, root=root, show=args.show, wait_time=args.wait_time,
            score_thr=hook.get('score_thr', 0.3) if detection else None,
            backend_args=hook.get('backend_args'))
    else:
        hook.update(draw=True, interval=1, show=True, wait_time=args.wait_time)
        hooks.visualization = hook


def augment(cfg: Config, detection: bool) -> None:
    """Wrap the model in the one that merges the versions of a picture, and make the versions.

    Where the config has no `tta_pipeline`, a segmentor sees the picture at half up to 1.75 times of
    the scale of its test, each also mirrored; a detector sees the picture and its mirror image.
    """
    dataset = dataset_of_test(cfg)
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='SegTTAModel') if not detection else dict(
            type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5),
                                             max_per_img=100))
    if 'tta_pipeline' not in cfg:
        steps = deepcopy(dataset.pipeline)
        cfg.tta_pipeline = _flipped(steps) if detection else _scaled_and_flipped(steps)
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _flipped(steps: list[Any]) -> list[Any]:
    pack = dict(type='PackDetInputs', meta_keys=(
        'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
        'flip_direction'))
    flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
    return [*steps[:-1], dict(type='TestTimeAug', transforms=[flips, [pack]])]


def _scaled_and_flipped(steps: list[Any]) -> list[Any]:
    """Six scales of `Resize` and two flips; of a pipeline without `Resize`, the flips alone."""
    names = [type_name(step) for step in steps]
    groups = [_scaled(step) if name == 'Resize' else [step]
              for name, step in zip(names, steps, strict=True)]
    # Before the annotations: the truth is not mirrored.
    last = len(steps) - 1
    groups.insert(next((i for i, name in enumerate(names) if 'Annotations' in name), last),
                  [dict(type='RandomFlip', prob=0.), dict(type='RandomFlip', prob=1.)])
    begin = next(i for i, group in enumerate(groups) if len(group) > 1)
    return [*(step for group in groups[:begin] for step in group),
            dict(type='TestTimeAug', transforms=groups[begin:])]


def _scaled(resize: dict[str, Any]) -> list[Any]:
    key = 'scale' if resize.get('scale') else 'scale_factor'
    number = int if key == 'scale' else float

    def times(ratio: float) -> Any:
        sides = resize[key]
        several = isinstance(sides, (list, tuple))
        return tuple(number(side * ratio) for side in sides) if several else number(sides * ratio)

    return [dict(resize, **{key: times(ratio)}) for ratio in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)]


def _write_predictions(cfg: Config, out: str, detection: bool,
                       test_data: Callable[[], Any]) -> None:
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    if detection:
        _write_detections(evaluators, out)
    else:
        checks.check_folder(out, 'the folder of predictions', '--out')
        dataset = test_data()
        images = images_of(dataset)
        root = root_of(images)
        check_not_replaced((os.path.join(out, prediction_of(image, root) + '.png')
                            for image in images), dataset, f'--out {out}')
        for evaluator in evaluators:
            evaluator['output_dir'] = out
            evaluator['keep_results'] = True
            if root is not None:
                _keep_folders(evaluator, root)
    cfg.test_evaluator = evaluators


def _write_detections(evaluators: list[dict[str, Any]], out: str) -> None:
    if out.endswith('/') or os.path.isdir(out):
        raise UserError(f'--out {out} is a folder; name the beginning of the files, for example '
                        f'{os.path.join(out, "results")}')
    checks.check_folder(os.path.dirname(out) or '.', 'the folder of predictions', '--out')
    if out.endswith(('.pkl', '.pickle')):
        evaluators.append(dict(type='DumpDetResults', out_file_path=out))
        return
    # COCO results, OUT.bbox.json and OUT.segm.json: what tools/eval_ap.py reads.
    coco = [e for e in evaluators if type_name(e) == 'CocoMetric']
    if not coco:
        raise UserError(f'--out {out} asks for COCO results, and the config has no CocoMetric; '
                        'name a .pkl file for mmdet\'s own dump')
    for evaluator in coco:
        evaluator['outfile_prefix'] = re.sub(r'(\.(bbox|segm))?\.json$', '', out)


def _test_data(cfg: Config) -> Any:
    """The data set of the test; None where it cannot be built."""
    try:
        return read_test_data(cfg)
    except Exception:
        # The run builds the data set again, and says what is wrong with the config.
        return None


def _keep_folders(evaluator: dict[str, Any], root: str) -> None:
    """Let an IoUMetric write predictions into the folders of their images."""
    if type_name(evaluator) != 'IoUMetric':
        raise UserError(f'images in several folders below {root} have the same name, and '
                        f'{type_name(evaluator)} would write one prediction over another; give '
                        'each image, and its label, a name of its own')
    importlib.import_module('visattn_dense.openmmlab.engine.iou_in_folders')
    evaluator.update(type='mmseg.IoUMetricInFolders', image_root=root)
