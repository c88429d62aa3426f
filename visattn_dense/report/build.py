"""From files to a page: one kind of work for label PNGs, one for COCO JSON."""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from visattn_dense.evaluation.pairs import Pair
from visattn_dense.report import page, segmentation, training
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
        cards, sections = segmentation.sections(measured, self.task, budget)
        facts = {
            'predictions': os.path.dirname(self.pairs[0].prediction),
            'truth': os.path.dirname(self.pairs[0].label),
            'fingerprint of the truth': training.fingerprint(pair.label for pair in self.pairs),
            'fingerprint of the predictions': training.fingerprint(
                pair.prediction for pair in self.pairs)}
        return page.Report(
            self.title, f'Segmentation, {len(self.pairs):,} images, {len(self.task.classes)} '
            'classes.', cards, self.task.classes, [*sections, *self.origin.sections(facts)])


@dataclass(frozen=True)
class Detections:
    """COCO JSON. other: results of a second model for the same annotations."""

    title: str
    results: str | os.PathLike
    annotations: str | os.PathLike
    kind: str | None = None
    images: str | os.PathLike | None = None
    other: str | os.PathLike | None = None
    origin: Origin = Origin()

    def report(self, *, workers: int, pictures: int, picture_bytes: int) -> page.Report:
        raise NotImplementedError
