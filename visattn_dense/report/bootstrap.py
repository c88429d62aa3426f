"""Intervals by resampling of images (bootstrap, Efron 1979): percentiles, moved to the score.

A data set is one draw of images. A resample draws as many images again, with repetition. The spread
of a score over many resamples shows how far the score depends on the choice of images. Two models
are compared on the same resamples (paired): what makes an image hard for both cancels out. The
interval covers the choice of the test images. It does not cover the randomness of a training.
"""
from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from visattn_dense.evaluation.segmentation import ratio

LEVEL = 95
"""Per cent of the resamples inside an interval."""
LEAST = 6
"""Images below which there is no interval. Of two equal models, one is better on all of five images
in one case of sixteen, and then on every resample of them."""


def resamples(images: int, times: int, seed: int = 0) -> np.ndarray:
    """(times, images) float32: how often each image is in each resample."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(images, np.full(images, 1 / images), size=times)
    return drawn.astype(np.float32)


@dataclass(frozen=True)
class Interval:
    """The middle `LEVEL` per cent of the values of all resamples; NaN where there is none."""

    low: float
    high: float

    @classmethod
    def of(cls, values: np.ndarray, score: float, images: int = LEAST) -> Interval:
        """The interval of a score.

        Args:
            values: (times,) of the resamples; NaN, where a resample has no value, are left out.
            score: of the images themselves. The values are moved so that their mean is the score:
                a resample repeats images, which lifts the AP of classes with few objects.
            images: that show what is scored; fewer than `LEAST` have no interval.
        """
        known = values[np.isfinite(values)]
        if not known.size or not np.isfinite(score) or images < LEAST:
            return cls(float('nan'), float('nan'))
        tail = (100 - LEVEL) / 2
        return cls(*(float(end) for end in
                     np.percentile(known, [tail, 100 - tail]) - known.mean() + score))

    @classmethod
    def of_score(cls, values: np.ndarray, score: float, images: int = LEAST) -> Interval:
        """The interval of a score in per cent, which is never below 0 or above 100."""
        interval = cls.of(values, score, images)
        return cls(*(float(np.clip(end, 0., 100.)) for end in (interval.low, interval.high)))

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def mean_over_classes(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis without NaN; NaN where all are NaN, without a warning."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return ratio(total, count)
