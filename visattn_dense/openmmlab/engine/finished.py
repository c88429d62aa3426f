"""A training that is over, for its report: config, best checkpoint, predictions, data.

The predictions are made once and kept in RUN/report/, until the checkpoint or the list of test
images changes.
"""
from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config

from visattn_dense.errors import UserError, few
from visattn_dense.evaluation.boundary import DEFAULT_RATIO
from visattn_dense.evaluation.pairs import Pair
from visattn_dense.evaluation.segmentation import Settings
from visattn_dense.openmmlab.config import dataset_of_test, read_config
from visattn_dense.openmmlab.datasets.check import quick_check
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.openmmlab.engine.prediction_files import (
    images_of,
    prediction_of,
    read_test_data,
    root_of,
)
from visattn_dense.openmmlab.engine.run_folder import checkpoint_of, config_of
from visattn_dense.report.build import Detections, Labels, Origin, Work
from visattn_dense.report.segmentation import Task
from visattn_dense.report.training import read_record
from visattn_dense.visualization.colour import distinct_palette

_TEST = ('import sys; from visattn_dense.openmmlab.engine.launch import test; '
         'sys.exit(test(sys.argv[1:]))')
# In the folder of the predictions: which checkpoint made them, of which images, and how fast.
_MARK = 'made.json'


def work_of_run(run: str, checkpoint: str | None = None, other: str | None = None, *,
                title: str | None = None, kind: str | None = None,
                boundary: bool = True) -> Work:
    """What `tools/report.py RUN` shows; predicts where there are no predictions yet.

    Args:
        run: the folder of a training.
        checkpoint: a file; by default the best one, or else the newest.
        other: a second run to compare with.
        title: of the page; by default the name of the config.
        kind: 'bbox' or 'segm' for detectors; None: boxes.
        boundary: count boundary IoU.

    Raises:
        UserError: the folder is not a training's, or the prediction fails.
    """
    cfg = read_config(str(config_of(run)))
    chosen = Path(checkpoint) if checkpoint else checkpoint_of(run)
    title = title or Path(cfg.filename).stem
    register_scope(cfg.get('default_scope'))
    dataset, dataset_b, made_b = _test_data(cfg), None, None
    if other is not None:
        cfg_b = read_config(str(config_of(other)))
        if cfg_b.get('default_scope') != cfg.get('default_scope'):
            raise UserError(f'{run} and {other} are not of one kind: '
                            f'{cfg.get("default_scope")} and {cfg_b.get("default_scope")}')
        dataset_b = _test_data(cfg_b)
        _check_same_classes(run, dataset, other, dataset_b)
        if cfg.get('default_scope') != 'mmdet':
            _check_same_images(run, dataset, other, dataset_b)
    made = predictions_of(run, cfg, chosen, images_of(dataset))
    speed = prediction_speed(run, chosen)
    if other is not None:
        made_b = predictions_of(other, cfg_b, checkpoint_of(other), images_of(dataset_b))
    facts = {'run': os.fspath(run), 'checkpoint': chosen.name}
    if speed:
        facts['speed of the prediction'] = speed
    if made_b:
        facts['compared with'] = os.fspath(other)
    origin = Origin(facts, cfg.pretty_text, read_record(run))
    if cfg.get('default_scope') == 'mmdet':
        annotations, images = _coco_files(cfg)
        return Detections(title=title, results=made, annotations=annotations, kind=kind,
                          images=images, other=made_b, origin=origin,
                          classes=dataset.metainfo.get('classes'))
    return _labels(title, dataset, made, made_b, origin, boundary)


def predictions_of(run: str | os.PathLike, cfg: Config, checkpoint: Path,
                   images: Sequence[str]) -> str:
    """The predictions of a checkpoint on the test data, made by tools/test.py unless there.

    Args:
        run, cfg, checkpoint: the folder, its config, and a checkpoint in it.
        images: the files of the test images; predictions of another list are made again.

    Returns:
        A folder of label PNGs, or the prefix of COCO results.

    Raises:
        UserError: the test fails; the message holds its last lines.
    """
    if not checkpoint.is_file():
        raise UserError(f'there is no checkpoint {checkpoint}')
    folder = _folder_of(run, checkpoint)
    out, mark = folder / 'predictions', folder / _MARK
    state = checkpoint.stat()
    of = {'checkpoint': checkpoint.name, 'size': state.st_size, 'time': state.st_mtime_ns,
          'images': hashlib.sha256(json.dumps(images).encode()).hexdigest()}
    if _read(mark).items() >= of.items():
        return os.fspath(out)
    mark.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    print(f'predicting with {checkpoint}; its output is in {folder / "test.log"}',
          file=sys.stderr, flush=True)
    with (folder / 'test.log').open('w') as log:
        code = subprocess.run(
            [sys.executable, '-c', _TEST, cfg.filename, os.fspath(checkpoint), '--out',
             os.fspath(out), '--work-dir', os.fspath(folder)],
            stdout=log, stderr=subprocess.STDOUT).returncode
    if code:
        lines = (folder / 'test.log').read_text(errors='replace').splitlines()
        # The message of the launcher, which comes last, or else the last lines.
        told = [at for at, line in enumerate(lines) if line.startswith('error: ')]
        raise UserError(f'the prediction with {checkpoint} failed; its config is {cfg.filename}\n'
                        + '\n'.join(lines[told[-1]:] if told else lines[-6:])
                        .removeprefix('error: '))
    mark.write_text(json.dumps(of | _measured(folder, cfg)))
    return os.fspath(out)


def prediction_speed(run: str | os.PathLike, checkpoint: Path) -> str:
    """How fast `predictions_of` was, in words; '' where that is not known."""
    made = _read(_folder_of(run, checkpoint) / _MARK)
    if not made.get('seconds_per_batch'):
        return ''
    return (f'{made["batch_size"] / made["seconds_per_batch"]:.3g} images/s, with reading and '
            f'writing, in batches of {made["batch_size"]}, on {made["device"]}')


def _measured(folder: Path, cfg: Config) -> dict[str, Any]:
    """What the newest test in a folder says about its speed: the mean over all batches."""
    # mmengine: folder/TIMESTAMP/TIMESTAMP.json holds the metrics and the times of the test.
    found = [_read(path) for path in sorted(folder.glob('*/*.json'))
             if path.stem == path.parent.name]
    device = (torch.cuda.get_device_name() if torch.cuda.is_available()
              else f'a CPU, threads: {torch.get_num_threads()}')
    return dict(seconds_per_batch=found[-1].get('time') if found else None,
                batch_size=cfg.test_dataloader.get('batch_size') or 1, device=device)


def _folder_of(run: str | os.PathLike, checkpoint: Path) -> Path:
    return Path(run, 'report', checkpoint.stem)


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; {} where there is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _test_data(cfg: Config) -> Any:
    try:
        return read_test_data(cfg)
    except Exception:
        # The check knows more words for what is wrong.
        quick_check(cfg, splits=('test',))
        raise


def _check_same_classes(run: str, dataset: Any, other: str, dataset_b: Any) -> None:
    """Refuse to compare models of different classes: an index would mean two things."""
    a, b = (data.metainfo.get('classes') for data in (dataset, dataset_b))
    if a != b:
        raise UserError(f'the models of {run} and {other} have different classes: '
                        f'{few(set(a or ()) ^ set(b or ())) or "in another order"}')


def _check_same_images(run: str, dataset: Any, other: str, dataset_b: Any) -> None:
    """Refuse to compare segmentors on different images: pixels have no id that would tell."""
    a, b = (set(_names(images_of(data))) for data in (dataset, dataset_b))
    if a != b:
        raise UserError(f'{run} and {other} have different test images: only one has '
                        f'{few(sorted(a ^ b))}')


def _names(images: Sequence[str]) -> list[str]:
    root = root_of(images)
    return [prediction_of(image, root) for image in images]


def _labels(title: str, dataset: Any, made: str, made_b: str | None, origin: Origin,
            boundary: bool) -> Labels:
    """The files that the test data of a segmentor names, beside the predictions."""
    classes = tuple(dataset.metainfo['classes'])
    palette = dataset.metainfo.get('palette') or distinct_palette(len(classes))
    pairs, others, images = [], [], {}
    reduce, ignored, label_map = False, 255, None
    for number, name in enumerate(_names(images_of(dataset))):
        info: dict[str, Any] = dataset.get_data_info(number)
        label_map = info.get('label_map')
        reduce = bool(info.get('reduce_zero_label'))
        ignored = getattr(dataset, 'ignore_index', 255)
        images[name] = info['img_path']
        for side, folder in ((pairs, made), (others, made_b)):
            if folder is not None:
                side.append(Pair(name, os.path.join(folder, f'{name}.png'),
                                 info['seg_map_path']))
    if not pairs:
        raise UserError('the test data of the config holds no image')
    for side, folder in ((pairs, made), (others, made_b)):
        if folder is not None:
            _check_all_there(side, folder)
    settings = Settings(len(classes), ignored, reduce, label_map=label_map,
                        boundary_ratio=DEFAULT_RATIO if boundary else None)
    return Labels(title=title, task=Task(classes, palette, settings, images), pairs=pairs,
                  other=others or None, origin=origin)


def _check_all_there(pairs: Sequence[Pair], folder: str) -> None:
    missing = [pair.prediction for pair in pairs if not os.path.isfile(pair.prediction)]
    if missing:
        raise UserError(f'{len(missing)} of {len(pairs)} test images have no prediction any more: '
                        f'{few(missing)}\nRemove {Path(folder).parent / _MARK}: the next report '
                        'predicts again.')


def _coco_files(cfg: Config) -> tuple[str, str | None]:
    """The annotation file and the folder of images of a detector's test data."""
    evaluators = cfg.test_evaluator
    evaluators = evaluators if isinstance(evaluators, (list, tuple)) else [evaluators]
    files = [e['ann_file'] for e in evaluators if e.get('ann_file')]
    dataset = dataset_of_test(cfg)
    root = dataset.get('data_root') or ''
    if not files:
        files = [os.path.join(root, dataset.get('ann_file', ''))]
    images = os.path.join(root, (dataset.get('data_prefix') or {}).get('img', ''))
    return files[0], images if os.path.isdir(images) else None
