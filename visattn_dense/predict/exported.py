"""An exported model on pictures: NumPy, Pillow and onnxruntime, without torch and OpenMMLab."""
from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from visattn_dense.errors import UserError

from .card import Card
from .exported_detector import ExportedDetector
from .fitting import Compute, ExportedModel, Ready
from .resizing import resize
from .results import Segmentation, about
from .stream import Options


class ExportedSegmentor(ExportedModel):
    """An exported segmentor: from inputs to [logits], or to [labels, confidence] if the file
    finishes."""

    result = Segmentation

    def run(self, batch: Sequence[Ready]) -> list[Sequence[np.ndarray]]:
        """The model's outputs for each picture. The file takes one picture at a time."""
        return [self.compute(ready.inputs) for ready in batch]

    def finish(self, prepared: Ready, output: Sequence[np.ndarray], options: Options
               ) -> Segmentation:
        """The class of each pixel of the picture.

        Raises:
            UserError: scores of all classes are asked for, and the file gives labels alone.
        """
        height, width = prepared.content
        size = prepared.image.shape[:2]
        if self.card.pre_and_post:
            if options.scores:
                raise UserError(f'{self.origin} gives labels and no scores of all classes; export '
                                'it without --with-pre-and-post')
            labels, confidence = (nearest(part[0, :height, :width], size) for part in output)
            scores = None
        else:
            labels, confidence, scores = decide(output[0][0, :, :height, :width], size, self.card,
                                                options)
        many = len(self.classes) >= 256
        labels = labels.astype(np.uint16 if many else np.uint8)
        ignored = 65535 if many else 255
        if options.conf is not None:
            labels[confidence < options.conf] = ignored
        if options.classes is not None:
            labels[~np.isin(labels, options.classes)] = ignored
        return Segmentation(
            **about(prepared.picture), image=prepared.image, model_size=prepared.content,
            classes=self.classes, palette=self.palette, labels=labels, ignored=ignored,
            scores=scores)


def decide(logits: np.ndarray, size: tuple[int, int], card: Card, options: Options
           ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """The class of each pixel at (H, W) = `size`, from (C, h, w) logits.

    One class at a time is resized, so no array of (C, H, W) is in memory, unless scores are asked
    for.

    Returns:
        labels (H, W); their probability, if `options.conf` is set; (C, H, W) float16 scores, if
        asked for.
    """
    def resized(part: np.ndarray) -> np.ndarray:
        return resize(part.astype(np.float32), size, align_corners=card.align_corners)

    if len(logits) == 1:
        positive = 1 / (1 + np.exp(-resized(logits[0])))
        labels = (positive > card.threshold).astype(np.uint8)
        scores = np.stack([1 - positive, positive])
        return (labels, np.where(labels > 0, positive, 1 - positive),
                scores.astype(np.float16) if options.scores else None)
    best = total = np.full(size, -np.inf, np.float32)
    labels = np.zeros(size, np.uint16)
    wants_total = options.scores or options.conf is not None
    kept = []
    for index, part in enumerate(map(resized, logits)):
        better = part > best
        best = np.where(better, part, best)
        labels[better] = index
        if wants_total:
            total = np.logaddexp(total, part)
        if options.scores:
            kept.append(part)
    return (labels, np.exp(best - total) if wants_total else None,
            np.stack([np.exp(part - total).astype(np.float16) for part in kept])
            if options.scores else None)


def nearest(part: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) at another size: each pixel takes the value of the pixel that has its centre."""
    rows, columns = ((np.arange(new) * 2 + 1) * old // (2 * new)
                     for new, old in zip(size, part.shape, strict=True))
    return part[rows[:, None], columns]


Exported = ExportedSegmentor | ExportedDetector


def exported(card: Card, compute: Compute, origin: str) -> Exported:
    """The runtime for the task of a file; the arguments are its attributes."""
    kind = ExportedSegmentor if card.task == 'segmentation' else ExportedDetector
    return kind(card, compute, origin)


def open_onnx(path: str | os.PathLike, device: str | None = None) -> Exported:
    """A model that tools/export.py wrote.

    Args:
        path: the ONNX file. It holds numbers and operators, no code.
        device: 'cpu', 'cuda' or 'cuda:1'; CUDA if this onnxruntime has it, where None.

    Raises:
        UserError, FileNotFoundError: no such file, no onnxruntime, no such device, or no model of
            tools/export.py.
    """
    path = os.fspath(path)
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f'{path} needs onnxruntime: pip install onnxruntime (or onnxruntime-gpu)'
                        ) from error
    kind, _, number = (device or '').partition(':')
    has_cuda = 'CUDAExecutionProvider' in onnxruntime.get_available_providers()
    if kind not in ('', 'cpu', 'cuda') or (kind == 'cuda' and not has_cuda):
        raise UserError(f'device {device!r} is not to be had: this onnxruntime computes on '
                        + ('cpu and cuda' if has_cuda else 'cpu; onnxruntime-gpu adds cuda'))
    providers: list[Any] = ['CPUExecutionProvider']
    if kind != 'cpu' and has_cuda:
        providers.insert(0, ('CUDAExecutionProvider', dict(device_id=int(number or 0))))
    options = onnxruntime.SessionOptions()
    # Its warnings are about the optimizer, and go to stderr.
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    # onnxruntime's errors have no common type of their own.
    except Exception as error:
        raise UserError(f'{path} does not load in onnxruntime: {error}') from error
    card = Card.read(session.get_modelmeta().custom_metadata_map, path)
    names = [entry.name for entry in session.get_inputs()]
    return exported(card, lambda *inputs: session.run(
        None, dict(zip(names, inputs, strict=True))), path)
