"""A model of mmsegmentation or mmdetection from a config and a checkpoint, ready for pictures.

    segmentor = open_segmentor(Config.fromfile(CONFIG), CHECKPOINT, device='cuda:0')
    label = segmentor.label('photo.jpg')        # (H, W) class indices, at the size of the file
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.checkpoints.pretrained import fill
from visattn_dense.errors import UserError
from visattn_dense.inference.detector import Detector
from visattn_dense.inference.preparation import Preparation
from visattn_dense.inference.segmentor import Segmentor
from visattn_dense.openmmlab.config import dataset_of_test
from visattn_dense.openmmlab.engine.evaluation import augment
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.visualization import distinct_palette
from visattn_dense.zoo.segmentor import fit_whole


def open_model(cfg: Config, checkpoint: str | os.PathLike, *, mode: str | None = None,
               crop: tuple[int, int] | None = None, stride: tuple[int, int] | None = None,
               gather: str | None = None, **options: Any) -> Segmentor | Detector:
    """The segmentor or the detector of a config; see `open_segmentor` and `open_detector`.

    `gather` has no part in a detector.
    """
    if cfg.get('default_scope') != 'mmdet':
        return open_segmentor(cfg, checkpoint, mode=mode, crop=crop, stride=stride, gather=gather,
                              **options)
    return open_detector(cfg, checkpoint, mode=mode, crop=crop, stride=stride, **options)


def open_segmentor(cfg: Config, checkpoint: str | os.PathLike, *, device: str = 'cpu',
                   mode: str | None = None, crop: tuple[int, int] | None = None,
                   stride: tuple[int, int] | None = None, gather: str | None = None,
                   native: bool = False, tta: bool = False, half: bool = False,
                   optimize: bool = False) -> Segmentor:
    """Build a config's segmentor and fill it from a checkpoint, of mmseg 1.x or 0.x.

    Args:
        cfg: a config of mmsegmentation; it is not changed.
        checkpoint: file or URL; nothing in it is executed.
        device: where the model runs.
        mode: 'whole', 'slide' or 'tiles'; where None, 'tiles' with `native`, else the config's
            `model.test_cfg`. 'tiles' blends windows of the picture itself without a seam.
        crop, stride: of the windows, (H, W); where None the config's `test_cfg`, or its
            `crop_size` and two thirds of it (tiles: three quarters).
        gather: where windows are summed or blended; where None the CPU, for tiles the device.
        native: leave out the resizing of the test pipeline.
        tta: compute the versions of the config's `tta_pipeline`, else the picture at six scales and
            mirrored, and average their probabilities.
        half: compute in float16 (on a CPU in bfloat16), by autocast.
        optimize: call `layers.optimize_for_inference` on the model.

    Raises:
        UserError, FileNotFoundError: no segmentor in the config, an unknown device, a checkpoint
            that does not load or leaves a part of the model empty.
    """
    model_cfg = Config(dict(model=cfg.model)).copy().model
    if cfg.get('default_scope') != 'mmseg' or 'decode_head' not in model_cfg:
        raise UserError(f'{cfg.filename} is no config of a segmentor (default_scope is '
                        f'{cfg.get("default_scope")!r}, model {model_cfg.get("type")!r})')
    # The auxiliary head has no part in inference.
    model_cfg.pop('auxiliary_head', None)
    test_cfg = model_cfg.get('test_cfg') or {}
    crop = tuple(crop or test_cfg.get('crop_size') or cfg.get('crop_size') or (512, 512))
    mode = mode or ('tiles' if native else test_cfg.get('mode', 'whole'))
    if mode != 'tiles':
        is_theirs = crop == tuple(test_cfg.get('crop_size') or ())
        stride = stride or (test_cfg.get('stride') if is_theirs else None)
        stride = stride or tuple(max(1, side * 2 // 3) for side in crop)
    crop, stride = _windows(crop, stride, mode, tta)
    gather = gather or (device if mode == 'tiles' else 'cpu')
    with _device(gather):
        torch.empty(0, device=gather)
    model, contents = _build(cfg, model_cfg, checkpoint)
    model = _placed(model, device, half, optimize)
    classes, palette = _class_table(cfg, contents, model.num_classes)
    return Segmentor(model, preparation(cfg, native or mode == 'tiles', tta), classes, palette,
                     mode, crop, stride, gather, _dtype(device) if half else None)


def open_detector(cfg: Config, checkpoint: str | os.PathLike, *, device: str = 'cpu',
                  mode: str | None = None, crop: tuple[int, int] | None = None,
                  stride: tuple[int, int] | None = None, native: bool = False, tta: bool = False,
                  half: bool = False, optimize: bool = False) -> Detector:
    """Build a config's detector or instance segmentor and fill it from a checkpoint.

    Args:
        cfg: a config of mmdetection; it is not changed.
        checkpoint, device, native, optimize: see `open_segmentor`.
        half: compute backbone and neck in float16 (on a CPU in bfloat16); the heads, whose boxes
            need more digits, in float32.
        mode: 'whole', or 'tiles': windows of the picture itself, whose objects are put together;
            where None, 'tiles' with `native`.
        crop, stride: of the windows of tiles, (H, W); 1024 and three quarters where None.
        tta: merge the boxes of the versions of the config's `tta_pipeline`, else of the picture and
            its mirror image; for models without masks only, as in mmdetection.

    Raises:
        UserError, FileNotFoundError: no detector in the config, an unknown device, a checkpoint
            that does not load or leaves a part of the model empty.
    """
    model_cfg = Config(dict(model=cfg.model)).copy().model
    if cfg.get('default_scope') != 'mmdet':
        raise UserError(f'{cfg.filename} is no config of a detector (default_scope is '
                        f'{cfg.get("default_scope")!r}, model {model_cfg.get("type")!r})')
    mode = mode or ('tiles' if native else 'whole')
    if mode == 'slide' or (mode == 'whole' and (crop or stride)):
        raise UserError(f'{cfg.filename} is a config of a detector: windows whose logits are '
                        "averaged (mode 'slide') are for segmentors; use mode 'tiles'")
    crop, stride = _windows(crop or (1024, 1024), stride, mode, tta)
    model, contents = _build(cfg, model_cfg, checkpoint)
    model = _placed(model, device, half, optimize)
    has_masks = model.with_mask or hasattr(model, 'panoptic_head')
    if tta and has_masks:
        raise UserError('tta: mmdetection merges boxes only, and this model finds masks too')
    classes, palette = _class_table(cfg, contents, _count_classes(model))
    if half:
        _halve_features(model, device)
    pipeline = preparation(cfg, native or mode == 'tiles', tta)
    if tta:
        from mmdet.registry import MODELS
        wrapper = dict(_augmented(cfg).model)
        wrapper.pop('module')
        with DefaultScope.overwrite_default_scope('mmdet'):
            model = MODELS.build(dict(wrapper, module=model)).eval()
    return Detector(model, pipeline, classes, palette, has_masks, mode, crop, stride)


def _windows(crop: Sequence[int], stride: Sequence[int] | None, mode: str, tta: bool
             ) -> tuple[tuple[int, int], tuple[int, int]]:
    """Window and step as pairs; three quarters of the window where there is no step."""
    stride = stride or [max(1, side * 3 // 4) for side in crop]
    if min(*crop, *stride) < 1 or any(s > c for s, c in zip(stride, crop, strict=True)):
        raise UserError(f'windows of {tuple(crop)} at steps of {tuple(stride)} leave gaps or are '
                        'empty: a step is 1 up to the window')
    if mode not in ('whole', 'slide', 'tiles'):
        raise UserError(f"mode is 'whole', 'slide' or 'tiles', got {mode!r}")
    if mode == 'tiles' and tta:
        raise UserError('tta and tiles exclude each other')
    return tuple(crop), tuple(stride)


def _build(cfg: Config, model_cfg: Config, checkpoint: str | os.PathLike) -> tuple[nn.Module, Any]:
    """The model with the weights of the checkpoint, and the contents of the checkpoint."""
    # Pretrained weights have no part in inference.
    for part in (model_cfg, model_cfg.get('backbone') or {}):
        part.pop('init_cfg', None)
    contents = read_checkpoint(checkpoint)
    scope = cfg.default_scope
    register_scope(scope)
    from mmengine.registry import MODELS
    with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
        # About losses, which have no part here either.
        warnings.simplefilter('ignore')
        model = MODELS.build(model_cfg)
    tensors, _ = fit_whole(model, contents, origin=checkpoint)
    fill(model, tensors, checkpoint)
    return model, contents


def _placed(model: nn.Module, device: str, half: bool, optimize: bool) -> nn.Module:
    if half and optimize and device.startswith('cpu'):
        raise UserError('half and optimize exclude each other on a CPU: optimized layers compute '
                        'in the dtype of their weights')
    with _device(device):
        model = revert_sync_batchnorm(model).eval().to(device)
    if optimize:
        from visattn_dense.layers import optimize_for_inference
        # The frames of a video and the crops of a large image have one size. On a GPU, nobody has
        # compared the results of a graph yet.
        optimize_for_inference(model, graphs=int(device.startswith('cpu')))
    return model


@contextmanager
def _device(name: str) -> Iterator[None]:
    """Something comes to a device; raises UserError where there is none."""
    try:
        yield
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {name!r} is not to be had here: {error}') from error


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device.startswith('cpu') else torch.float16


def _halve_features(model: nn.Module, device: str) -> None:
    """Let `extract_feat` of a detector compute by autocast and give float32."""
    extract, kind = model.extract_feat, torch.device(device).type

    def extract_feat(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        with torch.autocast(kind, _dtype(device)):
            maps = extract(*args, **kwargs)
        return tuple(level.float() for level in maps)

    model.extract_feat = extract_feat


def _count_classes(model: nn.Module) -> int:
    """The number of a detector's classes."""
    heads = [getattr(model, name, None) for name in ('roi_head', 'bbox_head', 'mask_head',
                                                     'panoptic_head')]
    for head in heads:
        inner = getattr(head, 'bbox_head', head)
        inner = inner[-1] if isinstance(inner, nn.ModuleList) else inner
        for name in ('num_classes', 'num_things_classes'):
            if isinstance(getattr(inner, name, None), int):
                return getattr(inner, name)
    raise UserError(f'{type(model).__name__} does not say how many classes it finds')


def _augmented(cfg: Config) -> Config:
    """The config with test-time augmentation, as tools/test.py makes it."""
    cfg = deepcopy(cfg)
    augment(cfg, cfg.default_scope == 'mmdet')
    return cfg


def steps_of_test(cfg: Config) -> Sequence[Any]:
    """The steps of a config's test data, as tools/test.py takes them; without test data, those of
    the variable `test_pipeline`."""
    return dataset_of_test(cfg).get('pipeline') or cfg.test_pipeline


def preparation(cfg: Config, native: bool = False, tta: bool = False) -> Preparation:
    """The test pipeline without annotations, cut behind the loader."""
    steps = steps_of_test(_augmented(cfg) if tta else cfg)
    kept = _without(steps, ('Annotations', *(('Resize',) if native else ())))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        loader, rest = Compose(kept[:1]), Compose(kept[1:])
    (first,) = loader.transforms
    stock = type(first).__module__.startswith('mmcv.') and (
        type(first).__name__ == 'LoadImageFromFile')
    return Preparation(loader, rest, as_float=stock and first.to_float32,
                       in_colour=stock and first.color_type.startswith('color'))


def _without(steps: Sequence[Any], endings: tuple[str, ...]) -> list[Any]:
    """Steps of a pipeline without those whose type ends so, in TestTimeAug and others too."""
    kept = []
    for step in steps:
        if isinstance(step, (list, tuple)):
            # TestTimeAug takes one step of each group; a group without any is left out.
            inner = _without(step, endings)
            kept += [inner] if inner else []
        elif not str(step['type']).endswith(endings):
            step = dict(step)
            if isinstance(step.get('transforms'), (list, tuple)):
                step['transforms'] = _without(step['transforms'], endings)
            kept.append(step)
    return kept


def _class_table(cfg: Config, contents: Any, count: int) -> tuple[Sequence[str], Sequence]:
    """Names and colours: of the checkpoint, else of the config's data set, else made up."""
    meta = contents.get('meta') if isinstance(contents, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = dataset_of_test(cfg)
    from mmengine.registry import DATASETS
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        kind = DATASETS.get(dataset['type']) if isinstance(dataset.get('type'), str) else None
    tables = (meta.get('dataset_meta'), {key.lower(): value for key, value in meta.items()},
              dataset.get('metainfo'), getattr(kind, 'METAINFO', None))
    for table in tables:
        names, palette = (table.get('classes'), table.get('palette')) if (
            isinstance(table, Mapping)) else (None, None)
        if _is_list(names, count) and all(isinstance(name, str) for name in names):
            fits = _is_list(palette, count) and all(map(_is_colour, palette))
            return names, palette if fits else distinct_palette(count)
    return [f'class {i}' for i in range(count)], distinct_palette(count)


def _is_list(value: Any, length: int) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == length


def _is_colour(value: Any) -> bool:
    return _is_list(value, 3) and all(type(level) is int and 0 <= level < 256 for level in value)
