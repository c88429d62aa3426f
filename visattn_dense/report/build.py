"""From files to a page: one kind of work for label PNGs, one for COCO JSON."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from visattn_dense.errors import UserError
from visattn_dense.evaluation.coco_files import FIELD, read_annotations, read_results, result_files
from visattn_dense.evaluation.pairs import Pair
from visattn_dense.report import compare, detection, page, segmentation, training
from visattn_dense.report.pictures import Budget


class Work(Protocol):
    """Predictions and truth that become a page."""

    def report(self, *, workers: int, pictures: int, picture_bytes: int) -> page.Report:
        """Read, count and draw.

        Args:
            workers: processes.
            pictures, picture_bytes: bounds of the pictures in the page.

        Raises:
            UserError: the files do not fit together.
        """


@dataclass(frozen=True)
class Origin:
    """Where predictions come from. facts: by name; config: its text; record: of the training."""

    facts: Mapping[str, str] = field(default_factory=dict)
    config: str = ''
    record: list[dict[str, Any]] = field(default_factory=list)

    def sections(self, facts: Mapping[str, str]) -> list[page.Section]:
        """The last parts of a page: the training, and the origin with further facts."""
        trained = training.training_section(self.record)
        return [*([trained] if trained else []), training.facts_section(
            {**facts, **self.facts, **training.speed(self.record)}, self.config)]


@dataclass(frozen=True)
class Labels:
    """Label PNGs. other: predictions of a second model for the same labels."""

    title: str
    task: segmentation.Task
    pairs: Sequence[Pair]
    other: Sequence[Pair] | None = None
    origin: Origin = Origin()

    def report(self, *, workers: int, pictures: int, picture_bytes: int) -> page.Report:
        budget = Budget(pictures, picture_bytes)
        measured = segmentation.measure(self.pairs, self.task, workers=workers, progress=True)
        first = []
        # What the reader asked for gets its pictures first.
        if self.other is not None:
            other = segmentation.measure(self.other, self.task, workers=workers, progress=True)
            first = [compare.labels(measured, other, self.task, budget)]
        cards, sections = segmentation.sections(measured, self.task, budget)
        facts = {
            'predictions': os.path.dirname(self.pairs[0].prediction),
            'truth': os.path.dirname(self.pairs[0].label),
            'fingerprint of the data': training.fingerprint(
                [pair.label for pair in self.pairs], 'label files'),
            'fingerprint of the predictions': training.fingerprint(
                [pair.prediction for pair in self.pairs], 'label files')}
        return page.Report(
            self.title, f'Segmentation, {len(self.pairs):,} images, {len(self.task.classes)} '
            'classes.', cards, dict(enumerate(self.task.classes)),
            [*first, *sections, *self.origin.sections(facts)])


@dataclass(frozen=True)
class Detections:
    """COCO JSON. other: results of a second model for the same annotations."""

    title: str
    results: str | os.PathLike
    annotations: str | os.PathLike
    kind: str | None = None
    """'bbox' or 'segm'; None: masks where the results hold masks alone."""
    images: str | os.PathLike | None = None
    other: str | os.PathLike | None = None
    origin: Origin = Origin()
    classes: Sequence[str] | None = None
    """What the model knows: other categories of the annotations do not count. None: all count."""

    def report(self, *, workers: int, pictures: int, picture_bytes: int) -> page.Report:
        truth = read_annotations(self.annotations)
        if self.classes is not None:
            truth = _of_classes(truth, self.classes)
        files = result_files(self.results)
        kind = self.kind or _kind(files, truth)
        results = _results(files, kind, truth)
        budget = Budget(pictures, picture_bytes)
        task = detection.Task(truth, kind, self.images)
        measured = detection.measure(results, task)
        first = []
        if self.other is not None:
            other = detection.measure(_results(result_files(self.other), kind, truth), task)
            first = [compare.detections(measured, other, task, budget)]
        cards, sections = detection.sections(measured, task, budget)
        facts = {
            'detections': os.fspath(self.results), 'truth': os.fspath(self.annotations),
            'fingerprint of the data': training.fingerprint(
                [self.annotations], 'annotation file: names and sizes of images, objects, classes',
                names=False),
            'fingerprint of the predictions': training.fingerprint(
                [files[FIELD[kind]]], 'file of detections', names=False)}
        what = {'bbox': 'boxes', 'segm': 'masks'}[kind]
        seen = measured.matches.seen_categories
        classes = {i: task.classes[i] for i in seen}
        count = len(classes) if len(classes) == len(task.classes) else (
            f'{len(classes)} of {len(task.classes)}')
        return page.Report(
            self.title, f'Detection, {what}, {len(truth["images"]):,} images, {count} classes.',
            cards, classes,
            [*first, *sections, *self.origin.sections(facts)])


def _of_classes(truth: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
    """The annotations without the objects of other classes, as CocoMetric counts them."""
    categories = [item for item in truth['categories'] if item['name'] in classes]
    known = {item['id'] for item in categories}
    return {**truth, 'categories': categories, 'annotations': [
        item for item in truth['annotations'] if item['category_id'] in known]}


def check_photos(annotations: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Refuse a folder that holds no photograph of an annotation file.

    Raises:
        UserError: there is none, or the annotation file has a fault.
    """
    truth = read_annotations(annotations)
    names = [str(image['file_name']) for image in truth['images'] if 'file_name' in image]
    if not any(os.path.isfile(os.path.join(folder, name)) for name in names):
        raise UserError(f'no photograph of the annotations is in {folder}, like '
                        f'{names[0] if names else "(they name no file)"}; give the folder at which '
                        'their file names begin, or leave --images out')


def _kind(files: Mapping[str, os.PathLike], truth: dict[str, Any]) -> str:
    """Boxes, unless the results hold masks alone."""
    if 'bbox' not in files:
        return 'segm'
    results = read_results(files['bbox'], truth)
    return 'segm' if results and not any('bbox' in result for result in results) else 'bbox'


def _results(files: Mapping[str, os.PathLike], kind: str,
             truth: dict[str, Any]) -> list[dict[str, Any]]:
    field_of_kind = FIELD[kind]
    if field_of_kind not in files:
        raise UserError(f'there are no results for {kind}; choose with --type')
    results = read_results(files[field_of_kind], truth)
    if kind == 'bbox':
        results = _with_masks(results, files, truth)
    if lacking := sum(field_of_kind not in result for result in results):
        raise UserError(f'{lacking} of {len(results)} detections have no {field_of_kind!r}; choose '
                        'with --type')
    return results


def _with_masks(results: list[dict[str, Any]], files: Mapping[str, os.PathLike],
                truth: dict[str, Any]) -> list[dict[str, Any]]:
    """The boxes with the masks of the file beside them, for the pictures.

    CocoMetric writes the same detections in the same order to both files. Where two files differ
    in more, the boxes stay without masks.
    """
    if files.get('segmentation', files['bbox']) == files['bbox']:
        return results
    masks = read_results(files['segmentation'], truth)
    same = ('image_id', 'category_id', 'bbox')
    if len(masks) != len(results) or any(
            box.get(key) != mask.get(key) or 'segmentation' not in mask
            for box, mask in zip(results, masks, strict=True) for key in same):
        return results
    return [{**box, 'segmentation': mask['segmentation']}
            for box, mask in zip(results, masks, strict=True)]
