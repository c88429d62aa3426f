"""A trained segmentor on images of any size: whole, or window by window with bounded memory.

    segmentor = open_segmentor(Config.fromfile(CONFIG), CHECKPOINT, device='cuda:0')
    label = segmentor.label('photo.jpg')        # (H, W) class indices, at the size of the file

`whole` computes what mmseg's test does. `slide` does too, but the logits of the windows are summed
where there is memory for them (`gather`), not on the GPU, and brought to the size of the file a few
classes at a time: with 150 classes a picture of 4000×3000 otherwise needs 7 GB twice.
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from visattn_dense.checkpoints import read_checkpoint, unwrap
from visattn_dense.errors import UserError
from visattn_dense.visualization import distinct_palette
from visattn_dense.zoo import match_parts

_CLASSES_AT_ONCE = 8


@dataclass
class Segmentor:
    """A model with what belongs to it: preparation of images, class names, colours.

    Attributes:
        model: mmseg's EncoderDecoder, in evaluation mode on its device.
        pipeline: from dict(img_path=...) to what the model takes.
        classes, palette: name and RGB triple of each class.
        mode: 'whole' or 'slide'.
        crop, stride: (H, W) of the windows and of their steps, in pixels of the prepared image.
        gather: the device on which the windows' logits are summed.
    """

    model: nn.Module
    pipeline: Compose
    classes: Sequence[str]
    palette: Sequence[Sequence[int]]
    mode: str = 'whole'
    crop: tuple[int, int] = (512, 512)
    stride: tuple[int, int] = (341, 341)
    gather: str | torch.device = 'cpu'

    @torch.inference_mode()
    def label(self, path: str | os.PathLike) -> np.ndarray:
        """The class index of each pixel: (H, W), uint8 (uint16 beyond 256 classes).

        Raises:
            UserError: the file is no image, or is damaged.
        """
        try:
            prepared = self.pipeline(dict(img_path=os.fspath(path)))
        except (OSError, ValueError, AttributeError) as error:
            # mmcv gives None for what OpenCV cannot read, and the pipeline stumbles over it.
            raise UserError(f'{path} cannot be read as an image: {error}') from error
        sample = prepared['data_samples']
        batch = self.model.data_preprocessor(
            dict(inputs=[prepared['inputs']], data_samples=[sample]), False)
        inputs, meta = batch['inputs'], dict(sample.metainfo)
        logits = (self._slide(inputs, meta) if self.mode == 'slide' else
                  self.model.encode_decode(inputs, [dict(meta, pad_shape=inputs.shape[2:])]))
        return _decide(logits, meta['ori_shape'][:2], self.model.align_corners)

    def _slide(self, inputs: Tensor, meta: Mapping[str, Any]) -> Tensor:
        """Mean logits of overlapping windows: (1, C, H, W) on `gather`."""
        height, width = inputs.shape[2:]
        total = None
        counts = torch.zeros(height, width, device=self.gather)
        for y1, y2 in window_spans(height, self.crop[0], self.stride[0]):
            for x1, x2 in window_spans(width, self.crop[1], self.stride[1]):
                window = inputs[:, :, y1:y2, x1:x2]
                # A torch.Size is how mmseg's heads know the size of a window.
                logits = self.model.encode_decode(
                    window, [dict(meta, img_shape=window.shape[2:])]).to(self.gather)
                if total is None:
                    total = logits.new_zeros(1, logits.shape[1], height, width)
                total[:, :, y1:y2, x1:x2] += logits
                counts[y1:y2, x1:x2] += 1
        return total.div_(counts)


def window_spans(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """(start, end) of windows that cover `length`, the last one flush with the end, as mmseg's."""
    count = max(length - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, length) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


def _decide(logits: Tensor, size: tuple[int, int], align_corners: bool) -> np.ndarray:
    """The best class at each pixel of (H, W) = `size`, from (1, C, h, w) logits.

    A few classes at a time are resized and compared with the best so far: no (C, H, W) is kept.
    """
    channels = logits.shape[1]
    best = torch.full(size, -torch.inf, device=logits.device)
    label = torch.zeros(size, dtype=torch.int16, device=logits.device)
    for first in range(0, channels, _CLASSES_AT_ONCE):
        part = F.interpolate(logits[:, first:first + _CLASSES_AT_ONCE].float(), size,
                             mode='bilinear', align_corners=align_corners)[0]
        if channels == 1:
            # One sigmoid channel: class 1 where it is above 0.3, mmseg's default threshold.
            label = (part[0].sigmoid() > 0.3).to(label.dtype)
            break
        values, winners = part.max(0)
        better = values > best
        best = torch.where(better, values, best)
        label = torch.where(better, (winners + first).to(label.dtype), label)
    return label.cpu().numpy().astype(np.uint8 if channels <= 256 else np.uint16)


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
    tensors, report = match_parts(model, unwrap(contents))
    if report.fraction < 1:
        raise UserError(f'{checkpoint} was made with another config than {cfg.filename}: {report}')
    model.load_state_dict(tensors, strict=False)
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
        names = (table or {}).get('classes')
        if names is not None and len(names) == count:
            palette = table.get('palette')
            fits = palette is not None and len(palette) == count
            return names, palette if fits else distinct_palette(count)
    return [f'class {i}' for i in range(count)], distinct_palette(count)
