"""Street furniture: lights, poles, signals, signs, fences and bins."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np

from .stage import Stage

_METAL = (96, 100, 104)


def _rod(stage: Stage, points: list[tuple[float, float, float]], thick: float, colour: tuple,
         identity: int, depth: float) -> None:
    """Stroke world points, with a lit edge where it is thick enough to show."""
    pixels = [np.array(stage.spot(*p)[:2]) for p in points]
    width = thick * stage.focal / depth
    for p, q in pairwise(pixels):
        stage.line(p, q, stage.lit(colour, depth, gain=0.8), width, identity)
    if width >= 4:
        shift = np.array((0.2 * width * np.sign((stage.rotation @ stage.sun)[0] or 1), 0))
        for p, q in pairwise(pixels):
            stage.line(p + shift, q + shift, stage.lit(colour, depth, gain=1.3), width * 0.35,
                       identity)


def add_streetlight(stage: Stage, s: float, z0: float, high: float, arm: float) -> None:
    """A lamp on a curved arm (ADE20K: streetlight); ``arm`` metres along the street's width."""
    spot = stage.stand(s, z0, 2, 3.5)
    if spot is None:
        return
    x, z, depth, scale = spot.x, spot.z, spot.depth, spot.scale
    stage.cast_upright(x, z, 0.08, 0.06, high)

    def draw() -> None:
        identity = stage.identity('streetlight')
        _rod(stage, [(x, 0, z), (x, 0.9, z)], 0.22, _METAL, identity, depth)
        _rod(stage, [(x, 0.5, z), (x, high - 0.6, z), (x + arm * 0.25, high - 0.1, z),
                     (x + arm, high, z)], 0.12, _METAL, identity, depth)
        tip = np.array(stage.spot(x + arm, high, z)[:2])
        on = stage.mood.lit_windows > 0.3
        if on:
            _glow(stage, tip + (0, 0.15 * scale), 1.5 * scale)
        stage.line(tip - (0.28 * scale, 0), tip + (0.28 * scale, 0),
                   stage.lit((70, 72, 76), depth), 0.2 * scale, identity)
        lamp = (255, 236, 176) if on else stage.lit((224, 224, 214), depth)
        stage.line(tip + (-0.2 * scale, 0.1 * scale), tip + (0.2 * scale, 0.1 * scale), lamp,
                   0.12 * scale, identity)

    stage.acts.append((depth, draw))


def _glow(stage: Stage, centre: np.ndarray, radius: float) -> None:
    """Add a soft halo to the colours only; labels stay as they are."""
    u, v = centre
    x0, x1 = max(0, int(u - radius)), min(stage.width, int(u + radius) + 1)
    y0, y1 = max(0, int(v - radius)), min(stage.height, int(v + radius) + 1)
    if x1 <= x0 or y1 <= y0:
        return
    yy, xx = np.mgrid[y0:y1, x0:x1]
    fall = np.clip(1 - np.hypot(xx - u, yy - v) / radius, 0, 1) ** 2
    patch = stage.colour[y0:y1, x0:x1].astype(np.float32)
    patch += fall[..., None] * np.array((150, 118, 66))
    stage.colour[y0:y1, x0:x1] = np.clip(patch, 0, 255)


def add_pole(stage: Stage, s: float, z0: float, high: float) -> None:
    """A wooden utility pole (ADE20K: pole) with cross-arms."""
    spot = stage.stand(s, z0, 2, 3.5)
    if spot is None:
        return
    x, z, depth = spot.x, spot.z, spot.depth
    wood = (118, 92, 70)
    stage.cast_upright(x, z, 0.08, 0.06, high)

    def draw() -> None:
        identity = stage.identity('pole')
        _rod(stage, [(x, 0, z), (x, high, z)], 0.24, wood, identity, depth)
        for drop in (0.5, 1.2):
            _rod(stage, [(x - 0.9, high - drop, z), (x + 0.9, high - drop, z)], 0.12, wood,
                 identity, depth)
            for k in (-0.8, -0.4, 0.4, 0.8):
                _rod(stage, [(x + k, high - drop, z), (x + k, high - drop + 0.16, z)], 0.08,
                     (170, 176, 170), identity, depth)

    stage.acts.append((depth, draw))


def add_signal(stage: Stage, s: float, z0: float, lamp: int) -> None:
    """Traffic light on a pole; ``lamp`` 0 red, 1 amber, 2 green."""
    spot = stage.stand(s, z0, 1, 4.0)
    if spot is None:
        return
    x, z, depth, scale = spot.x, spot.z, spot.depth, spot.scale
    identity = stage.identity('traffic light', single=True)
    stage.cast_upright(x, z, 0.08, 0.06, 3.0)

    def draw() -> None:
        _rod(stage, [(x, 0, z), (x, 2.7, z)], 0.13, (70, 76, 74), stage.identity('pole'), depth)
        u, v, _ = stage.spot(x, 3.1, z)
        half, tall = 0.24 * scale, 0.58 * scale
        box = np.array([(u - half, v - tall), (u + half, v - tall), (u + half, v + tall),
                        (u - half, v + tall)])
        stage.fill(box, stage.lit((204, 168, 50), depth), identity)
        inner = np.array((u, v)) + (box - (u, v)) * (0.84, 0.93)
        stage.fill(inner, stage.lit((40, 42, 40), depth), identity)
        colours = ((240, 48, 40), (250, 180, 40), (60, 230, 120))
        for i, colour in enumerate(colours):
            spot = np.array((u, v + (i - 1) * 0.36 * scale))
            shown = colour if i == lamp else stage.lit(np.array(colour) * 0.28, depth)
            stage.disk(spot, 0.145 * scale, shown, identity)
        _glow(stage, np.array((u, v + (lamp - 1) * 0.36 * scale)), 0.35 * scale)

    stage.acts.append((depth, draw))


def add_sign(stage: Stage, s: float, z0: float, design: str) -> None:
    """Traffic sign on a pole: 'stop' (an instance), 'speed', 'yield', 'blue' or 'board'."""
    rng = stage.rng
    spot = stage.stand(s, z0, 1, 4.0)
    if spot is None:
        return
    x, z, depth, scale = spot.x, spot.z, spot.depth, spot.scale
    stop = design == 'stop'
    identity = stage.identity('stop sign' if stop else 'signboard', single=stop)
    high = rng.uniform(2.2, 2.6)
    stage.cast_upright(x, z, 0.08, 0.06, high)

    def draw() -> None:
        _rod(stage, [(x, 0, z), (x, high, z)], 0.09, _METAL, stage.identity('pole'), depth)
        if design == 'board':
            _rod(stage, [(x + 1.5, 0, z), (x + 1.5, high, z)], 0.09, _METAL,
                 stage.identity('pole'), depth)
        u, v, _ = stage.spot(x, high, z)
        centre = np.array((u, v))

        def regular(sides: int, radius: float, turn: float, colour: tuple) -> None:
            t = np.arange(sides) * 2 * np.pi / sides + turn
            ring = centre + radius * scale * np.stack([np.sin(t), -np.cos(t)], 1)
            stage.fill(ring, stage.lit(colour, depth, gain=1.1), identity)

        def bar(x0: float, y0: float, x1: float, y1: float, colour: tuple) -> None:
            box = centre + scale * np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])
            stage.fill(box, stage.lit(colour, depth, gain=1.1), identity)

        if stop:
            regular(8, 0.50, np.pi / 8, (240, 240, 236))
            regular(8, 0.45, np.pi / 8, (196, 30, 36))
            for k in range(4):
                bar(-0.30 + 0.16 * k, -0.11, -0.19 + 0.16 * k, 0.11, (244, 240, 236))
        elif design == 'speed':
            regular(20, 0.45, 0, (206, 34, 40))
            regular(20, 0.34, 0, (240, 240, 236))
            for k in (-0.2, 0.04):
                bar(k, -0.15, k + 0.14, 0.15, (30, 30, 32))
        elif design == 'yield':
            regular(3, 0.55, np.pi, (206, 34, 40))
            regular(3, 0.34, np.pi, (244, 240, 236))
        elif design == 'blue':
            bar(-0.40, -0.40, 0.40, 0.40, (34, 84, 170))
            regular(3, 0.30, 0, (240, 240, 236))
        else:
            bar(-0.15, -0.75, 1.65, 0.35, (240, 240, 236))
            bar(-0.08, -0.68, 1.58, 0.28, (28, 104, 72))
            for row in (-0.5, -0.1):
                for k in np.arange(0.1, rng.uniform(0.8, 1.3), 0.17):
                    bar(k, row, k + 0.11, row + 0.2, (240, 240, 236))

    stage.acts.append((depth, draw))


def add_fence(stage: Stage, side: int, s: float, z0: float, z1: float, style: str) -> None:
    """A run of fence along the street: 'planks', 'pickets' or 'rails', cut in panels."""
    rng = stage.rng
    tone = {'planks': (150, 112, 78), 'pickets': (236, 234, 226), 'rails': (66, 70, 72)}[style]
    tone = np.array(tone) * rng.uniform(0.85, 1.05)
    high = {'planks': 1.6, 'pickets': 1.0, 'rails': 1.1}[style]
    for start in np.arange(z0, z1, 2.5):
        end = min(start + 2.5, z1)
        _add_panel(stage, side, s, start, end, style, tuple(tone), high)


def _add_panel(stage: Stage, side: int, s: float, z0: float, z1: float, style: str, tone: tuple,
               high: float) -> None:
    rng = stage.rng
    ax, az, _ = stage.place(side * s, z0)
    bx, bz, turn = stage.place(side * s, z1)
    if not stage.visible((ax + bx) / 2, (az + bz) / 2, 2.5, 2.0):
        return
    a, b = np.array((ax, 0.0, az)), np.array((bx, 0.0, bz))
    depth = stage.spot((ax + bx) / 2, 0, (az + bz) / 2)[2]
    normal = -side * np.array((np.cos(turn), 0, -np.sin(turn)))
    lift = np.array((0, 1.0, 0))
    if style == 'planks':
        stage.cast(np.array([a, b, a + lift * high, b + lift * high]))

    def quad(f0: float, f1: float, y0: float, y1: float, gain: float) -> None:
        p, q = a + (b - a) * f0, a + (b - a) * f1
        stage.face(np.array([p + lift * y0, q + lift * y0, q + lift * y1, p + lift * y1]),
                   stage.lit(tone, depth, normal, gain), stage.identity('fence'))

    def draw() -> None:
        count = 12 if depth < 30 else 6
        if style == 'planks':
            for k in range(count):
                quad(k / count, (k + 1) / count, 0.05, high + rng.uniform(-0.04, 0.04),
                     rng.uniform(0.82, 1.08))
            quad(0, 1, 0.4, 0.5, 0.7)
        elif style == 'pickets':
            quad(0, 1, 0.25, 0.36, 0.85)
            quad(0, 1, 0.7, 0.8, 0.85)
            for k in range(count):
                quad((k + 0.15) / count, (k + 0.8) / count, 0.05, high, rng.uniform(0.92, 1.05))
        else:
            quad(0, 1, high - 0.08, high, 1.2)
            quad(0, 1, 0.5, 0.56, 1.0)
            for k in range(count):
                quad(k / count, (k + 0.28) / count, 0, high, 0.9)

    stage.acts.append((depth, draw))


def add_bin(stage: Stage, s: float, z0: float) -> None:
    """A litter bin or letter box, left unlabelled (0) as odds and ends are in ADE20K."""
    spot = stage.stand(s, z0, 0.5, 4.0)
    if spot is None:
        return
    x, z, _, u, foot, depth, scale = spot
    tone = stage.pick(((52, 96, 66), (60, 64, 70), (196, 54, 48), (44, 74, 130)))
    stage.cast(np.array([(x - 0.3, 0, z), (x + 0.3, 0, z), (x - 0.3, 1.1, z), (x + 0.3, 1.1, z),
                         (x, 0, z + 0.3)]))

    def draw() -> None:
        identity = stage.identity('other')
        for k in range(6):
            left, right = -0.32 + k * 0.64 / 6, -0.32 + (k + 1) * 0.64 / 6
            shade = 0.7 + 0.6 * np.exp(-((k - 2.5 - stage.sun[0] * 2) / 2) ** 2)
            strip = np.array([(u + left * scale, foot), (u + right * scale, foot),
                              (u + right * 1.06 * scale, foot - 1.0 * scale),
                              (u + left * 1.06 * scale, foot - 1.0 * scale)])
            stage.fill(strip, stage.lit(tone, depth, gain=shade), identity)
        lid = cv2.ellipse2Poly((int(u), int(foot - scale)), (max(1, int(0.36 * scale)),
                               max(1, int(0.14 * scale))), 0, 0, 360, 20)
        stage.fill(lid, stage.lit(np.array(tone) * 0.7, depth), identity)

    stage.acts.append((depth, draw))
