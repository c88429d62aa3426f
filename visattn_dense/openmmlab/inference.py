"""Models from a config and a checkpoint, ready for images of any size.

    segmentor = open_segmentor(Config.fromfile(CONFIG), CHECKPOINT, device='cuda:0')
    label = segmentor.label('photo.jpg')        # (H, W) class indices, at the size of the file

    backbone = open_backbone(cfg, CHECKPOINT)   # of a segmentor or a detector
    prepared = prepare_image(cfg, 'photo.jpg')
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope

from visattn_dense.backbones import DenseBackbone
from visattn_dense.checkpoints import read_checkpoint
from visattn_dense.checkpoints.pretrained import fill
from visattn_dense.errors import MissingFileError, UserError
from visattn_dense.explain.subject import Prepared, normalised
from visattn_dense.explain.subject import fill as fill_backbone
from visattn_dense.inference.segmentor import Segmentor
from visattn_dense.openmmlab.engine.launch import register_scope
from visattn_dense.registry import BACKBONES
from visattn_dense.visualization import distinct_palette
from visattn_dense.zoo.segmentor import fit_whole


def open_segmentor(cfg: Config, checkpoint: str | os.PathLike, *, device: str = 'cpu',
                   mode: str | None = None, crop: tuple[int, int] | None = None,
                   stride: tuple[int, int] | None = None, gather: str | None = None) -> Segmentor:
    """Build a config's segmentor and fill it from a checkpoint, of mmseg 1.x or 0.x.

    Args:
        cfg: a config of mmsegmentation; it is not changed.
        checkpoint: file or URL; nothing in it is executed.
        device: where the model runs.
        mode: 'whole' or 'slide'; the config's `model.test_cfg` where None.
        crop, stride: of the windows, (H, W); where None the config's `test_cfg`, or its
            `crop_size` and two thirds of it.
        gather: where windows are summed; the CPU where None.

    Raises:
        UserError, FileNotFoundError: no segmentor in the config, an unknown device, a checkpoint
            that does not load or leaves a part of the model empty.
    """
    model_cfg = Config(dict(model=cfg.model)).copy().model
    if cfg.get('default_scope') != 'mmseg' or 'decode_head' not in model_cfg:
        raise UserError(f'{cfg.filename} is no config of a segmentor (default_scope is '
                        f'{cfg.get("default_scope")!r}, model {model_cfg.get("type")!r})')
    # Neither pretrained weights nor the auxiliary head have a part in inference.
    model_cfg.pop('auxiliary_head', None)
    model_cfg.backbone.pop('init_cfg', None)
    contents = read_checkpoint(checkpoint)
    from mmseg.registry import MODELS
    from mmseg.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    with DefaultScope.overwrite_default_scope('mmseg'), warnings.catch_warnings():
        # About losses, which have no part here either.
        warnings.simplefilter('ignore')
        model = MODELS.build(model_cfg)
        pipeline = Compose(_inference_pipeline(cfg))
    tensors, _ = fit_whole(model, contents, origin=checkpoint)
    fill(model, tensors, checkpoint)
    try:
        model = revert_sync_batchnorm(model).eval().to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f'device {device!r} is not to be had here: {error}') from error
    test_cfg = model_cfg.get('test_cfg') or {}
    crop = crop or test_cfg.get('crop_size') or cfg.get('crop_size') or (512, 512)
    stride = stride or (None if crop != test_cfg.get('crop_size') else test_cfg.get('stride'))
    stride = stride or tuple(max(1, side * 2 // 3) for side in crop)
    if min(*crop, *stride) < 1 or any(s > c for s, c in zip(stride, crop, strict=True)):
        raise UserError(f'windows of {crop} at steps of {stride} leave gaps or are empty: a step '
                        'is 1 up to the window')
    classes, palette = _class_table(cfg, contents, model.decode_head.num_classes)
    return Segmentor(model, pipeline, classes, palette, mode or test_cfg.get('mode', 'whole'),
                     tuple(crop), tuple(stride), gather or 'cpu')


def open_backbone(cfg: Config, checkpoint: str | os.PathLike) -> DenseBackbone:
    """The backbone of a config's model, with its weights, in evaluation mode.

    Args:
        cfg: a config of a segmentor, a detector or another model with a `backbone` of this project.
        checkpoint: of the whole model or of the backbone; see `load_pretrained`. 'none' for random
            weights.

    Raises:
        UserError, FileNotFoundError: another backbone, or a checkpoint that does not load or fit.
    """
    entry = cfg.get('model', {}).get('backbone')
    if entry is None or entry.get('type') not in BACKBONES:
        found = 'no model.backbone' if entry is None else f'the backbone {entry.get("type")!r}'
        raise UserError(f'{cfg.filename} has {found}; the backbones here are '
                        f'{", ".join(BACKBONES)}')
    entry = {key: value for key, value in entry.to_dict().items() if key != 'init_cfg'}
    torch.manual_seed(0)
    backbone = BACKBONES.build(entry)
    fill_backbone(backbone, checkpoint)
    return backbone.eval()


def prepare_image(cfg: Config, path: str | os.PathLike) -> Prepared:
    """An image file after a config's test pipeline and normalisation, without padding.

    Raises:
        UserError: the file is missing, not an image, or damaged.
    """
    if not os.path.exists(path):
        raise MissingFileError(f'no image {path}: there is no such file')
    register_scope(cfg.get('default_scope'))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')):
        pipeline = Compose(_inference_pipeline(cfg))
    try:
        packed = pipeline(dict(img_path=os.fspath(path), img_id=0))
    except (OSError, ValueError, AttributeError, AssertionError) as error:
        # mmcv asserts that OpenCV can read the image.
        raise UserError(f'{path} cannot be read as an image: {error}') from error
    # The pipelines load BGR.
    picture = packed['inputs'].permute(1, 2, 0).flip(-1).contiguous().numpy()
    options = cfg.model.get('data_preprocessor') or {}
    mean, std = options.get('mean') or [0.] * 3, options.get('std') or [1.] * 3
    if not (options.get('bgr_to_rgb') or options.get('rgb_to_bgr')):
        image = normalised(picture, mean[::-1], std[::-1]).flip(1)
    else:
        image = normalised(picture, mean, std)
    return Prepared(image, picture, tuple(packed['data_samples'].ori_shape[:2]))


def _inference_pipeline(cfg: Config) -> list[dict]:
    steps = cfg.get('test_pipeline') or cfg.test_dataloader.dataset.pipeline
    return [step for step in steps if not str(step['type']).endswith('LoadAnnotations')]


def _class_table(cfg: Config, contents: Any, count: int) -> tuple[Sequence[str], Sequence]:
    """Names and colours: of the checkpoint, else of the config's data set, else made up."""
    meta = contents.get('meta') if isinstance(contents, Mapping) else None
    meta = meta if isinstance(meta, Mapping) else {}
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    from mmseg.registry import DATASETS
    with DefaultScope.overwrite_default_scope('mmseg'):
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
