"""Sky, distant ridges and the ground: what lies behind and below everything else."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from .noise import fractal_noise, sample
from .stage import SUPERSAMPLE, Stage


@dataclass(frozen=True)
class Side:
    """One side of the street, from the kerb outwards; widths in metres."""

    verge: float
    sidewalk: float
    beyond: str

    @property
    def reach(self) -> float:
        """Metres from the kerb to where lots begin."""
        return self.verge + self.sidewalk


@dataclass(frozen=True)
class Street:
    """Cross-section of the street, and where another one crosses it (None: nowhere)."""

    half_width: float
    left: Side
    right: Side
    verge_kind: str
    paved: bool
    markings: str
    crossing: float | None
    crossing_half: float
    crosswalk: bool

    def side(self, side: int) -> Side:
        """The left (-1) or the right (1) side."""
        return self.left if side < 0 else self.right

    def edge(self, side: int) -> float:
        """Metres from the centre line to where the lots of a side (-1 or 1) begin."""
        return self.half_width + self.side(side).reach


def paint_sky(stage: Stage) -> None:
    """Gradient, glow around the sun and clouds that flatten towards the horizon."""
    mood, rng = stage.mood, stage.rng
    rows = max(1, min(stage.height, int(stage.horizon) + 2))
    # The sky is smooth: every second pixel will do.
    v, u = np.mgrid[:rows + 1:2, :stage.width:2].astype(np.float32)
    up = np.clip((stage.horizon - v) / stage.focal, 0, None)
    side = (u - stage.width / 2) / stage.focal
    blend = np.clip(up / 0.75, 0, 1)[..., None] ** 0.6
    sky = np.float32(mood.sky_low) * (1 - blend) + np.float32(mood.sky_top) * blend
    sun = (stage.rotation @ stage.sun).astype(np.float32)
    ray = np.stack([side, -up, np.ones_like(up)], -1)
    cosine = (ray @ sun) / np.linalg.norm(ray, axis=-1)
    glow = np.clip(cosine, 0, 1) ** 14
    sky += glow[..., None] * (np.float32(mood.sun) * 130)

    noise = fractal_noise(rng)
    far = 1 / (up + 0.10)
    x, y = (side * far * 34 + float(rng.uniform(0, 256)),
            far * 42 + float(rng.uniform(0, 256)))
    density = sample(noise, x, y)
    lit_side = density - sample(noise, x - (5 if sun[0] > 0 else -5), y + 4)
    start = 0.9 - 0.75 * min(max(mood.cloudiness + float(rng.uniform(-0.3, 0.3)), 0), 1)
    cover = np.clip((density - start) / 0.28, 0, 1) * np.clip(up / 0.07, 0, 1)
    cloud = np.float32(mood.cloud) * (0.90 + 0.5 * np.clip(lit_side, -0.3, 0.2))[..., None]
    sky += (cloud - sky) * (cover * 0.9)[..., None]
    whole = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), (stage.width, 2 * len(sky)))
    stage.colour[:rows] = whole[:rows]
    stage.ids[:rows] = stage.identity('sky')
    stage.colour[rows:] = np.clip(stage.haze, 0, 255)
    stage.ids[rows:] = stage.identity('earth')


def paint_ridge(stage: Stage, kind: str, albedo: tuple[float, float, float], metres: float,
                rise: float, roughness: int) -> None:
    """Paint a far silhouette ``rise`` radians high: mountains, woods or a skyline."""
    rng, columns = stage.rng, np.arange(stage.width)
    if kind == 'building':
        edges = np.cumsum(rng.integers(10, 34, 80) * stage.width // 512 + 1)
        tops = rng.uniform(0.35, 1, 81)[np.searchsorted(edges, columns)]
    else:
        phase = rng.uniform(0, 256)
        noise = fractal_noise(rng, octaves=roughness)
        x = (columns[None] * (220 / stage.width) + phase).astype(np.float32)
        tops = 0.25 + 0.75 * sample(noise, x, np.full_like(x, phase))[0]
    crest = stage.horizon - tops * rise * stage.focal
    top, bottom = max(0, int(crest.min())), min(stage.height, int(stage.horizon) + 3)
    v = np.arange(top, bottom, dtype=np.float32)[:, None]
    mask = v >= crest
    grain = rng.standard_normal(((bottom - top) // 2 + 1, stage.width // 2 + 1), np.float32)
    texture = cv2.resize(grain, mask.shape[::-1])
    tone = 1 + 0.05 * texture - 0.10 * (v - crest) / (rise * stage.focal + 1)
    if kind == 'building':
        pane = (columns % 5 < 3) & (v % 5 < 3)
        tone = tone * np.where(pane, 0.88, 1.0) * (1 + 0.10 * np.sin(tops * 40))
    base = np.float32(stage.lit(albedo, metres))
    stage.colour[top:bottom][mask] = np.clip(base * tone[mask][:, None], 0, 255)
    stage.ids[top:bottom][mask] = stage.identity(kind)


def _mix(colour: np.ndarray, mask: np.ndarray, value: object) -> None:
    """Blend (h, w, 3) towards a colour where the mask (h, w) in 0..1 says."""
    colour += (np.asarray(value, np.float32) - colour) * mask[..., None]


def paint_ground(stage: Stage, street: Street, season: dict) -> None:
    """Road with its markings, kerbs, pavements, grass and earth, in the stage's shadows."""
    rng = stage.rng
    top = max(0, int(stage.horizon) + 1)
    v, u = np.mgrid[top:stage.height, :stage.width].astype(np.float32)
    depth = stage.focal * stage.camera_y / (v - stage.horizon + 0.5)
    across = (u - stage.width / 2) * depth / stage.focal
    cos, sin = math.cos(stage.yaw), math.sin(stage.yaw)
    x = stage.camera_x + across * cos + depth * sin
    z = -across * sin + depth * cos
    s = x - stage.bend * np.clip(z, 0, 120) ** 2
    away = np.abs(s)
    noise = fractal_noise(rng)
    broad = sample(noise, x * 7, z * 7) - 0.5
    fine = sample(noise, x * 45, z * 45) - 0.5
    vast = sample(noise, x * 2.5, z * 2.5)
    grain = rng.standard_normal(s.shape, np.float32)
    sharp = np.clip(1.4 - depth / 30, 0.15, 1)

    colour = np.empty((*s.shape, 3), np.float32)
    ids = np.empty(s.shape, np.int32)
    lawn = np.asarray(season['grass'], np.float32)
    soil = np.asarray(season['soil'], np.float32)
    lawn = lawn * (1 + 0.35 * broad + (0.30 * fine + 0.10 * grain) * sharp)[..., None]
    lawn[..., 0] += 30 * np.clip(broad, 0, 1)
    soil = soil * (1 + 0.30 * broad + (0.35 * fine + 0.06 * grain) * sharp)[..., None]
    stone = np.float32(season['stone']) * (1 + 0.12 * broad + 0.06 * fine + 0.02 * grain)[..., None]
    tile = season['tile']
    joint = (np.mod(s, tile) < 0.05) | (np.mod(z, tile) < 0.05)
    slab = np.sin(np.floor(s / tile) * 12.9 + np.floor(z / tile) * 78.2) * 0.05
    stone *= (1 + (slab - 0.20 * joint) * np.clip(1.3 - depth / 22, 0, 1))[..., None]
    asphalt = np.float32(season['asphalt']) * (
        1 + 0.16 * broad + (0.14 * fine + 0.05 * grain) * sharp
    )[..., None]
    surfaces = {'grass': lawn, 'earth': soil, 'sidewalk': stone}

    def lay(mask: np.ndarray, kind: str, albedo: np.ndarray) -> None:
        cv2.copyTo(albedo, mask.view(np.uint8), colour)
        ids[mask] = stage.identity(kind)

    half = street.half_width
    for side, config in ((-1, street.left), (1, street.right)):
        here = s * side >= 0
        lay(here, config.beyond, surfaces[config.beyond])
        if config.beyond == 'grass':
            lay(here & (vast > 0.74) & (away > half + config.reach + 0.5), 'earth', soil)
        lay(here & (away < half + config.reach), 'sidewalk', stone)
        lay(here & (away < half + config.verge), street.verge_kind, surfaces[street.verge_kind])
    ragged = 0.0 if street.paved else 0.5 * fine + 0.6 * broad
    road = away < half + ragged
    walkable = (street.left.sidewalk > 0, street.right.sidewalk > 0)
    if street.crossing is not None:
        off = np.abs(z - street.crossing)
        paved_side = np.where(s < 0, walkable[0], walkable[1])
        lay((off < street.crossing_half + 2.2) & ~road & paved_side, 'sidewalk', stone)
        road |= off < street.crossing_half
    lay(road, 'road', asphalt)
    if walkable[0] or walkable[1]:
        kerb = (away >= half) & (away < half + 0.22) & ~road
        kerb &= np.where(s < 0, walkable[0], walkable[1])
        lay(kerb, 'sidewalk', stone * 1.15)
        gutter = road & (away > half - 0.3) & (away < half)
        _mix(colour, gutter * np.float32(0.3), (60, 58, 56))
    if street.paved:
        _mark_road(street, colour, road, s, z, fine)

    shadow = cv2.GaussianBlur(stage.shade, (0, 0), 1.2 * SUPERSAMPLE)[top:] / np.float32(255)
    direct = np.asarray(stage.mood.sun, np.float32) * max(stage.sun[1], 0.35)
    # Under a grey sky the direct light is faint: keep some contact shadow.
    dim = shadow[..., None] * (0.22 * np.asarray(stage.mood.ambient, np.float32) + direct)
    colour *= np.asarray(stage.mood.ambient, np.float32) + direct - dim
    clear = np.exp(-depth / stage.mood.haze_metres)[..., None]
    colour = colour * clear + stage.haze.astype(np.float32) * (1 - clear)
    stage.colour[top:] = np.clip(colour, 0, 255)
    stage.ids[top:] = ids


def _mark_road(street: Street, colour: np.ndarray, road: np.ndarray, s: np.ndarray,
               z: np.ndarray, worn: np.ndarray) -> None:
    """Add wheel tracks, lane markings and a crosswalk to the albedo (h, w, 3), in place."""
    half, away = street.half_width, np.abs(s)
    lane = half / 2 if half < 5 else half / 3
    track = np.exp(-((np.abs(np.mod(away, lane) - lane / 2) - lane / 4) / 0.35) ** 2)
    _mix(colour, np.where(road, 0.12 * track, 0), (40, 40, 42))
    open_road = road
    if street.crossing is not None:
        open_road = road & (np.abs(z - street.crossing) > street.crossing_half + 5)
    paint = np.clip(0.92 + 0.5 * worn, 0.4, 0.95)
    white, yellow = (226, 226, 220), (222, 176, 52)
    dashed = np.mod(z, 6) < 3
    if street.markings == 'double':
        line = (np.abs(away - 0.16) < 0.07) & open_road
        _mix(colour, line * paint, yellow)
    elif street.markings == 'dashed':
        line = (away < 0.08) & dashed & open_road
        _mix(colour, line * paint, white)
    if half > 5:
        line = (np.abs(away - lane) < 0.08) & dashed & open_road
        _mix(colour, line * paint, white)
    if street.markings != 'none':
        line = (np.abs(away - half + 0.45) < 0.06) & open_road
        _mix(colour, line * paint, white)
    if street.crosswalk:
        middle = 9.0 if street.crossing is None else street.crossing - street.crossing_half - 2.2
        stripe = (np.abs(z - middle) < 1.5) & (np.mod(s, 1.1) < 0.55) & (away < half - 0.2)
        _mix(colour, (stripe & road) * paint, white)
