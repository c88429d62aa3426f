"""From a seed to a street: what stands where, then one picture with its exact labels."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .ground import Street, paint_ground, paint_sky
from .kinds import KINDS
from .layout import (
    PLANS,
    add_people,
    add_signals,
    add_traffic,
    backdrop,
    build_side,
    draw_season,
    furnish_side,
    lay_street,
)
from .moods import MOODS
from .stage import SUPERSAMPLE, Stage

MIN_PIXELS = 16
_DEFAULT_SIZE = (192, 256)


@dataclass(frozen=True)
class Instance:
    """One countable object: its COCO category and the part of it that can be seen.

    ``mask`` is (H, W) bool, ``bbox`` (x, y, width, height) in pixels; ``crowd`` marks a region of
    several objects that were not told apart.
    """

    category: str
    mask: np.ndarray
    bbox: tuple[int, int, int, int]
    crowd: bool = False


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) uint8 RGB, its ADE20K labels (H, W) uint8 and its instances."""

    image: np.ndarray
    label: np.ndarray
    instances: list[Instance]


def _open_stage(rng: np.random.Generator, size: tuple[int, int], street: Street) -> Stage:
    mood = MOODS[str(rng.choice(list(MOODS), p=(0.34, 0.2, 0.18, 0.18, 0.10)))]
    height, width = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    view = rng.random()
    if view < 0.62:
        yaw = rng.normal(0, 0.16)
    else:
        yaw = rng.choice((-1, 1)) * (rng.uniform(0.35, 0.9) if view < 0.8
                                     else rng.uniform(1.2, np.pi / 2))
    half = street.half_width
    x = rng.uniform(-half - 0.6 * street.left.reach, half + 0.6 * street.right.reach)
    if abs(yaw) > 0.3:
        # Looking across: stand on the near kerb.
        side = -1 if yaw > 0 else 1
        x = side * min(half + rng.uniform(0.0, 4.0), street.edge(side))
    bend = rng.normal(0, 0.0016) if abs(yaw) < 0.3 and street.crossing is None else 0.0
    return Stage(
        rng=rng, height=height, width=width, mood=mood,
        focal=rng.uniform(0.72, 1.05) * width, horizon=rng.uniform(0.40, 0.60) * height,
        camera_x=float(x), camera_y=float(rng.uniform(1.5, 2.9)), yaw=float(yaw),
        bend=float(bend), sun_azimuth=float(rng.uniform(0, 2 * np.pi)),
        sun_elevation=float(rng.uniform(*mood.elevation)),
    )


def _develop(stage: Stage, size: tuple[int, int]) -> np.ndarray:
    """Turn the canvas into a photograph: lens, exposure, sensor noise and JPEG."""
    rng, (height, width) = stage.rng, size
    # Leaves: a fine mottle over all foliage, which dabs alone lack.
    leafy = (stage.ids == stage.foliage) | (stage.ids == stage.identity('plant'))
    grain = cv2.resize(rng.standard_normal(size, np.float32), leafy.shape[::-1])
    tone = 1 + np.float32(0.24) * grain[leafy]
    stage.colour[leafy] = np.clip(stage.colour[leafy] * tone[:, None], 0, 255)
    canvas = cv2.GaussianBlur(stage.colour, (0, 0), rng.uniform(0.5, 0.95) * SUPERSAMPLE / 2)
    image = cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32)
    y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
    image *= (1 - rng.uniform(0.03, 0.14) * (x**2 + y**2))[..., None]
    image *= rng.uniform(0.92, 1.10) * rng.normal(1, 0.018, 3)
    contrast = rng.uniform(0.98, 1.18)
    image = (image - 118) * contrast + 118
    image += rng.normal(0, rng.uniform(1.2, 4.2), (height, width, 1))
    image += rng.normal(0, rng.uniform(0.6, 1.8), (height, width, 3))
    picture = np.clip(image, 0, 255).astype(np.uint8)
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(72, 94))]
    _, code = cv2.imencode('.jpg', picture[..., ::-1], quality)
    return np.ascontiguousarray(cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1])


def _instances(stage: Stage, ids: np.ndarray) -> list[Instance]:
    found = []
    counts = np.bincount(ids.ravel(), minlength=len(stage.kinds))
    for identity in range(len(KINDS), len(stage.kinds)):
        if stage.kinds[identity].coco is None or counts[identity] < MIN_PIXELS:
            continue
        mask = ids == identity
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = (int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1),
               int(rows[-1] - rows[0] + 1))
        found.append(Instance(stage.kinds[identity].coco, mask, box, identity in stage.crowds))
    return found


def render_scene(seed: int, size: tuple[int, int] = _DEFAULT_SIZE) -> Scene:
    """Render the scene of a seed; the same seed and size give the same bytes.

    Args:
        seed: any non-negative integer.
        size: (H, W) in pixels, at least 48 each.

    Raises:
        ValueError: on a negative seed or a smaller size.
    """
    if seed < 0:
        raise ValueError(f'seed must not be negative, got {seed}')
    if len(size) != 2 or min(size) < 48:
        raise ValueError(f'size must be (height, width) of at least 48 pixels each, got {size}')
    rng = np.random.default_rng(seed)
    name = str(rng.choice(list(PLANS), p=[share for share, _ in PLANS.values()]))
    plan = PLANS[name][1]
    street = lay_street(rng, name)
    stage = _open_stage(rng, size, street)
    season = draw_season(rng, street.paved)

    paint_sky(stage)
    backdrop(stage, name, season)
    for side in (-1, 1):
        build_side(stage, street, plan, side, season)
        furnish_side(stage, street, plan, side, season)
    # Training code must also meet pictures without any object.
    if rng.random() > 0.07:
        add_traffic(stage, street, plan)
        add_people(stage, street, plan)
        add_signals(stage, street)
    paint_ground(stage, street, season)
    for _, draw in sorted(stage.acts, key=lambda act: -act[0]):
        draw()

    step = SUPERSAMPLE
    ids = stage.ids[step // 2::step, step // 2::step]
    table = np.array([kind.ade_index for kind in stage.kinds], np.uint8)
    return Scene(_develop(stage, size), table[ids], _instances(stage, ids))
