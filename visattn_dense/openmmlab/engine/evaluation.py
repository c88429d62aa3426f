"""Turn a training config into one run of evaluation on a checkpoint."""
from __future__ import annotations

import importlib
import os
from copy import deepcopy
from typing import Any

from mmengine.config import Config, ConfigDict

from visattn_dense.checkpoints import read_checkpoint, unwrap
from visattn_dense.errors import UserError
from visattn_dense.openmmlab.engine.prediction_files import images_of, read_test_data, root_of


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
    if args.show or args.show_dir:
        _draw(cfg, args, detection)
    if args.tta:
        augment(cfg, detection)
    if args.out:
        _write_predictions(cfg, args.out, detection)


def _draw(cfg: Config, args: Any, detection: bool) -> None:
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    kind = 'Det' if detection else 'Seg'
    hook = hooks.setdefault('visualization', ConfigDict(type=f'{kind}VisualizationHook'))
    # mmengine's own visualizer, which a config without one has, paints no predictions.
    cfg.visualizer = cfg.get('visualizer') or ConfigDict(type=f'{kind}LocalVisualizer')
    hook.update(draw=True, interval=1)
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    if args.show_dir and detection:
        # mmdetection joins a relative folder to its own anew for every image.
        hook.test_out_dir = os.path.abspath(args.show_dir)
    elif args.show_dir:
        cfg.visualizer.setdefault('vis_backends', [dict(type='LocalVisBackend')])
        cfg.visualizer.save_dir = args.show_dir


def augment(cfg: Config, detection: bool) -> None:
    """Wrap the model in the one that merges the versions of a picture, and make the versions.

    Raises:
        UserError: a segmentor's config without `tta_model` and `tta_pipeline`.
    """
    if not detection and not ('tta_model' in cfg and 'tta_pipeline' in cfg):
        raise UserError(f'--tta needs tta_model and tta_pipeline, which {cfg.filename} does not '
                        'have')
    if 'tta_model' not in cfg:
        cfg.tta_model = dict(type='DetTTAModel', tta_cfg=dict(
            nms=dict(type='nms', iou_threshold=0.5), max_per_img=100))
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset['dataset']
    if 'tta_pipeline' not in cfg:
        pack = dict(type='PackDetInputs', meta_keys=(
            'img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
            'flip_direction'))
        flips = [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)]
        cfg.tta_pipeline = [*deepcopy(dataset.pipeline)[:-1],
                            dict(type='TestTimeAug', transforms=[flips, [pack]])]
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _write_predictions(cfg: Config, out: str, detection: bool) -> None:
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    if detection and out.endswith(('.pkl', '.pickle')):
        evaluators.append(dict(type='DumpDetResults', out_file_path=out))
    elif detection:
        # COCO results, OUT.bbox.json and OUT.segm.json: what tools/eval_ap.py reads.
        coco = [e for e in evaluators if e['type'] in ('CocoMetric', 'mmdet.CocoMetric')]
        if not coco:
            raise UserError(f'--out {out} asks for COCO results, and the config has no CocoMetric; '
                            'name a .pkl file for mmdet\'s own dump')
        for evaluator in coco:
            evaluator['outfile_prefix'] = out.removesuffix('.json')
    else:
        root = root_of(_test_images(cfg))
        for evaluator in evaluators:
            evaluator['output_dir'] = out
            evaluator['keep_results'] = True
            if root is not None:
                _keep_folders(evaluator, root)
    cfg.test_evaluator = evaluators


def _test_images(cfg: Config) -> list[str]:
    try:
        return images_of(read_test_data(cfg))
    except Exception:
        # The run builds the data set again, and says what is wrong with the config.
        return []


def _keep_folders(evaluator: dict[str, Any], root: str) -> None:
    """Let an IoUMetric write predictions into the folders of their images."""
    if evaluator['type'] not in ('IoUMetric', 'mmseg.IoUMetric'):
        raise UserError(f'images in several folders below {root} have the same name, and '
                        f'{evaluator["type"]} would write one prediction over another; give each '
                        'image, and its label, a name of its own')
    importlib.import_module('visattn_dense.openmmlab.engine.iou_in_folders')
    evaluator.update(type='mmseg.IoUMetricInFolders', image_root=root)
