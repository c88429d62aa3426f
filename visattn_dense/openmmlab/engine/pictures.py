"""Pictures that a training writes into its work directory, so that one sees what it learns.

    curve.png         losses, validation scores, learning rate; renewed during the training
    val_ITER.jpg      a few validation images, the same each time: image, truth, prediction
    labels.png        how often each class is in the training data; for objects sizes and places
    train_batch.jpg   the first augmented batches as the network sees them, with their truth

The pictures change nothing else: neither the random numbers nor the data nor what a checkpoint
holds. A picture that cannot be drawn costs one warning, and the training goes on.
"""
from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from PIL import Image

from visattn_dense.atomic import written_whole
from visattn_dense.openmmlab.engine.picture_data import (
    SHOWN_SCORE,
    Classes,
    SeenImage,
    ValidationImages,
    collect_labels,
    seen_images,
)
from visattn_dense.openmmlab.engine.seeding import generators_kept
from visattn_dense.openmmlab.engine.validations import read_validations
from visattn_dense.visualization.colour import IGNORED
from visattn_dense.visualization.curve import draw_curve
from visattn_dense.visualization.instances import (
    InstanceRow,
    Instances,
    draw_instance_sheet,
    paint_instances,
)
from visattn_dense.visualization.labels import PixelLabels, draw_object_labels, draw_pixel_labels
from visattn_dense.visualization.layout import lay_out
from visattn_dense.visualization.overlay import overlay
from visattn_dense.visualization.sheet import Row, draw_sheet

_CELL = 400
_TILE, _TILES_OF_BATCH, _TILES, _BATCHES, _COLUMNS = 320, 4, 8, 4, 4
_LABEL_SECONDS, _CURVE_SECONDS = 1.5, 20.
_MOST_POINTS = 2000


class Allowance:
    """Keeps the time of drawing below a share of the time of the run.

    Args:
        share: of the time since the start.
        free: seconds of drawing that need no run behind them: the first pictures.
        clock: seconds, monotonic.
    """

    def __init__(self, share: float, free: float,
                 clock: Callable[[], float] = time.perf_counter) -> None:
        self.share, self.free, self.clock = share, free, clock
        self.begun = clock()
        self.spent = 0.
        self._last: dict[str, float] = {}

    def allows(self, kind: str) -> bool:
        """Whether a picture of this kind, if it takes as long as the last one, may be drawn."""
        return self.spent + self.last(kind) <= max(
            self.free, self.share * (self.clock() - self.begun))

    def spend(self, kind: str, seconds: float) -> None:
        """Count the time of one picture."""
        self.spent += seconds
        self._last[kind] = seconds

    def last(self, kind: str) -> float:
        """Seconds that the last picture of this kind took; 0 before the first one."""
        return self._last.get(kind, 0.)


@HOOKS.register_module()
class PicturesHook(Hook):
    """Draws the pictures of a run; the first process of a run draws, the others do nothing.

    Args:
        images: validation images on a sheet.
        most_sheets: val_ITER.jpg files that are kept: the first, the last, and others between.
        share: of the time of the run that drawing takes at most. The last curve and the last sheet
            are drawn in any case.
        free_seconds: of drawing that are allowed at any time, for the first pictures of a run.

    Attributes:
        written: names of the pictures that this run wrote and kept.
    """

    # After the checkpoint of the iteration, which is worth more.
    priority = 'LOWEST'

    def __init__(self, images: int = 6, most_sheets: int = 20, share: float = 0.02,
                 free_seconds: float = 6.) -> None:
        self.images, self.most_sheets = images, most_sheets
        self.share, self.free_seconds = share, free_seconds
        self.written: list[str] = []
        self._at_work = False
        self._rows: dict[int, tuple] | None = None

    def before_train(self, runner) -> None:
        self._at_work = is_main_process()
        if not self._at_work:
            return
        self._runner = runner
        self._name = runner.experiment_name.removesuffix(f'_{runner.timestamp}')
        self._allowance = Allowance(self.share, self.free_seconds)
        self._curve_at = self._allowance.begun
        self._broken: set[str] = set()
        self._held_back = False
        self._batches: list[list[SeenImage]] = []
        self._chosen: ValidationImages | None = None
        self._attempt('labels.png', self._draw_labels)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._preprocessor = model.data_preprocessor
        self._watch = self._preprocessor.register_forward_hook(self._see_batch)

    def after_train_iter(self, runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        if not self._at_work:
            return
        if self._watch is not None and (sum(map(len, self._batches)) >= _TILES
                                        or len(self._batches) >= _BATCHES):
            self._end_watch()
        if self._curve_is_old():
            self._attempt('curve.png', self._draw_curve, runner.iter + 1)

    def before_val_epoch(self, runner) -> None:
        if self._at_work and (self._may('val_ITER.jpg') or runner.iter >= runner.max_iters):
            self._rows = {}

    def after_val_iter(self, runner, batch_idx: int, data_batch: Any = None,
                       outputs: Any = None) -> None:
        if self._rows is not None:
            self._attempt('val_ITER.jpg', self._see_outputs, outputs)

    def after_val_epoch(self, runner, metrics: Mapping[str, Any] | None = None) -> None:
        if self._rows:
            self._attempt('val_ITER.jpg', self._draw_sheet, runner.iter, metrics or {})
        self._rows = None
        if self._at_work and self._may('curve.png'):
            self._attempt('curve.png', self._draw_curve, runner.iter)

    def after_train(self, runner) -> None:
        if not self._at_work:
            return
        self._end_watch()
        self._attempt('curve.png', self._draw_curve, runner.iter)
        self._at_work = False

    # Time and failures

    def _may(self, kind: str) -> bool:
        """Whether there is time for a picture; says once that there is none."""
        allowed = self._allowance.allows(kind)
        if not allowed and not self._held_back:
            self._held_back = True
            self._runner.logger.info(
                f'Pictures have taken {self._allowance.spent:.1f} s: fewer are drawn from here, '
                f'so that they stay below {100 * self.share:g} % of the run.')
        return allowed

    def _curve_is_old(self) -> bool:
        """Whether the curve is renewed between two validations.

        These curves take a quarter of the time of drawing: the sheets of the validations have the
        rest.
        """
        age = self._allowance.clock() - self._curve_at
        return age > _CURVE_SECONDS and self._allowance.last('curve.png') < self.share * age / 4

    def _attempt(self, kind: str, draw: Callable[..., None], *arguments: Any) -> None:
        """Draw, measure the time, and keep every failure away from the training."""
        if kind in self._broken:
            return
        begun = self._allowance.clock()
        try:
            with generators_kept():
                draw(*arguments)
        # Drawing meets the data and models of strangers: anything may be raised.
        except Exception as error:
            self._broken.add(kind)
            self._runner.logger.warning(
                f'{kind} could not be drawn and is left out from here; the training goes on. '
                f'{type(error).__name__}: {error}')
        self._allowance.spend(kind, self._allowance.clock() - begun)

    def _save(self, name: str, write: Callable[[Path], None]) -> None:
        with written_whole(Path(self._runner.work_dir, name)) as path:
            write(path)
        if name not in self.written:
            self.written.append(name)

    # The pictures

    def _draw_labels(self) -> None:
        dataset = self._runner.train_dataloader.dataset
        labels = collect_labels(dataset, seconds=_LABEL_SECONDS)
        draw = draw_pixel_labels if isinstance(labels, PixelLabels) else draw_object_labels
        self._save('labels.png', lambda path: draw(
            path, labels, *Classes.of(dataset), title='Labels of the training data'))

    def _see_batch(self, preprocessor: Any, _: Any, output: Any) -> None:
        """A forward hook of the data preprocessor: keep the batch, small."""
        if preprocessor.training:
            self._attempt('train_batch.jpg', lambda: self._batches.append(
                seen_images(preprocessor, output, _TILES_OF_BATCH, _TILE)))

    def _end_watch(self) -> None:
        if self._watch is not None:
            self._watch.remove()
            self._watch = None
            if self._batches:
                self._attempt('train_batch.jpg', self._draw_batches)
            self._batches = []

    def _draw_batches(self) -> None:
        names, palette = Classes.of(self._runner.train_dataloader.dataset)
        tiles, shown = [], set()
        for image, truth in (seen for batch in self._batches for seen in batch):
            if isinstance(truth, Instances):
                tiles.append(paint_instances(image, truth, palette, names=names, opacity=0.4))
                shown.update(truth.labels.tolist())
            elif truth is None:
                tiles.append(Image.fromarray(image))
            else:
                tiles.append(Image.fromarray(overlay(image, truth, palette)))
                shown.update(np.unique(truth).tolist())
        rows = [tiles[i:i + _COLUMNS] for i in range(0, len(tiles), _COLUMNS)]
        page = lay_out(
            rows, names=names, palette=palette, cell_width=_TILE,
            shown=sorted(i for i in shown if 0 <= i < len(names) and i != IGNORED),
            title='Training images as the network sees them',
            subtitle='after augmentation, with the truth drawn over: colours must lie on their '
            'objects; plain grey only fills up the size')
        self._save('train_batch.jpg', lambda path: _write_jpeg(page, path))

    def _see_outputs(self, outputs: Any) -> None:
        if self._chosen is None:
            self._chosen = ValidationImages(
                self._runner.val_dataloader.dataset, self.images, get_world_size(), _CELL)
        for output in outputs:
            place = self._chosen.place(output)
            if place is not None:
                self._rows[place] = self._chosen.row(output)

    def _draw_sheet(self, iteration: int, metrics: Mapping[str, Any]) -> None:
        names, palette = Classes.of(self._runner.val_dataloader.dataset)
        rows = [self._rows[place] for place in sorted(self._rows)]
        objects = isinstance(rows[0][1], Instances)
        scores = [f'{name.rpartition("/")[2]} {metrics[name]:.4g}' for name in (
            'mIoU', 'mAcc', 'aAcc', 'coco/bbox_mAP', 'coco/segm_mAP', 'coco/bbox_mAP_50')
            if isinstance(metrics.get(name), Real) and metrics[name] == metrics[name]]
        if objects:
            scores.append(f'predictions from a score of {100 * SHOWN_SCORE:.0f} %')
        draw, row = (draw_instance_sheet, InstanceRow) if objects else (draw_sheet, Row)
        page = draw([row(*each) for each in rows], names, palette, cell_width=_CELL,
                    title=f'{self._name}, iteration {iteration}', subtitle=', '.join(scores))
        self._save(f'val_{iteration}.jpg', lambda path: _write_jpeg(page, path))
        for surplus in thin_out(Path(self._runner.work_dir), self.most_sheets):
            surplus.unlink()
            if surplus.name in self.written:
                self.written.remove(surplus.name)

    def _draw_curve(self, iteration: int) -> None:
        self._curve_at = self._allowance.clock()
        entries = history(self._runner.message_hub.log_scalars, iteration)
        if not entries:
            return
        entries += [dict(entry['metrics'], step=entry['iteration'])
                    for entry in read_validations(self._runner.work_dir)
                    if entry['iteration'] <= iteration]
        self._save('curve.png', lambda path: draw_curve(path, entries, title=self._name))


def history(scalars: Mapping[str, Any], iteration: int) -> list[dict[str, float]]:
    """Entries of a training as `draw_curve` takes them, from mmengine's histories.

    A checkpoint holds these histories, so a resumed run goes on with them.

    Args:
        scalars: mmengine's histories by name, one value for each iteration.
        iteration: of the last value.
    """
    lines = {name.removeprefix('train/'): buffer.data[0] for name, buffer in scalars.items()
             if name.startswith('train/') and ('loss' in name or name.endswith('lr'))}
    count = len(lines.get('loss', ()))
    step = max(1, -(-count // _MOST_POINTS))
    ends = range(count, 0, -step)
    # A mean over `step` iterations for each point of a long run.
    return [dict({name: float(np.mean(line[len(line) - count + max(0, end - step):
                                           len(line) - count + end]))
                  for name, line in lines.items() if len(line) >= count},
                 iter=iteration - count + end) for end in reversed(ends)]


def thin_out(folder: Path, most: int) -> list[Path]:
    """Which val_ITER.jpg to remove so that `most` stay, the first and the last among them.

    Of three neighbours that lie closest together the middle one goes.
    """
    sheets = sorted((int(match[1]), path) for path in folder.glob('val_*.jpg')
                    if (match := re.fullmatch(r'val_(\d+)\.jpg', path.name)))
    removed = []
    while len(sheets) > max(2, most):
        middle = min(range(1, len(sheets) - 1),
                     key=lambda i: sheets[i + 1][0] - sheets[i - 1][0])
        removed.append(sheets.pop(middle)[1])
    return removed


def _write_jpeg(page: Image.Image, path: Path) -> None:
    # Thin lines and letters in colour want their full resolution.
    page.save(path, 'JPEG', quality=88, subsampling=0)
