"""Bicycles, parked or with a rider."""

from __future__ import annotations

import numpy as np

from .people import BOTTOMS, HAIR, SKIN, TOPS, Figure
from .stage import Stage
from .vehicles import PAINTS


def _strokes(stage: Stage, x: float, z: float, heading: float, identity: int,
             paint: tuple) -> dict[str, tuple[float, float]]:
    """Draw a bicycle; return the canvas points of saddle, bars and pedals for a rider."""
    ahead = np.array((np.sin(heading), 0, np.cos(heading)))
    foot = np.array((x, 0.0, z))
    depth = stage.spot(x, 0, z)[2]
    scale = stage.focal / depth

    def at(along: float, up: float) -> np.ndarray:
        point = foot + ahead * along + (0, up, 0)
        return np.array(stage.spot(*point)[:2])

    spokes = stage.lit((120, 120, 124), depth)
    ring = np.linspace(0, 2 * np.pi, 19)[:-1]
    for hub in (-0.52, 0.52):
        rim = np.array([at(hub + 0.33 * np.cos(t), 0.34 + 0.33 * np.sin(t)) for t in ring])
        # Annotators label the whole wheel, so the picture also shows a thin disk.
        stage.veil(rim, spokes, 0.35, identity)
        for k in range(0, 9, 3):
            stage.line(rim[k], rim[(k + 9) % 18], spokes, 1, identity)
        for k in range(18):
            stage.line(rim[k - 1], rim[k], stage.lit((30, 30, 32), depth), 0.06 * scale, identity)
    parts = {'saddle': at(-0.22, 0.95), 'bars': at(0.40, 1.05), 'crank': at(-0.05, 0.32),
             'rear': at(-0.52, 0.34), 'front': at(0.52, 0.34)}
    tone = stage.lit(paint, depth)
    for a, b in (('rear', 'crank'), ('rear', 'saddle'), ('crank', 'saddle'), ('crank', 'bars'),
                 ('saddle', 'bars'), ('front', 'bars')):
        stage.line(parts[a], parts[b], tone, 0.05 * scale, identity)
    stage.line(at(-0.34, 0.97), at(-0.12, 0.97), stage.lit((40, 34, 30), depth), 0.07 * scale,
               identity)
    stage.line(at(0.34, 1.08), at(0.48, 1.06), stage.lit((40, 40, 42), depth), 0.05 * scale,
               identity)
    return {name: tuple(point) for name, point in parts.items()}


def add_bicycle(stage: Stage, s: float, z0: float, ridden: bool, turn: float) -> None:
    """Put a bicycle, with a rider or parked."""
    spot = stage.stand(s, z0, 1.0, 4.5)
    if spot is None:
        return
    x, z, heading, u, foot, depth, _ = spot
    heading += turn
    machine = stage.identity('bicycle', single=True)
    rider = stage.identity('person', single=True) if ridden else None
    paint, top, bottom, skin, hair = map(stage.pick, (PAINTS, TOPS, BOTTOMS, SKIN, HAIR))
    ahead = np.array((np.sin(heading), np.cos(heading)))
    ends = [(x + k * ahead[0], y, z + k * ahead[1]) for k in (-0.7, 0.7) for y in (0, 0.7)]
    stage.cast(np.array(ends), 200)
    if ridden:
        stage.cast(np.array([(x - 0.2, 0.8, z), (x + 0.2, 0.8, z), (x, 1.75, z), (x, 0.4, z)]))

    def draw() -> None:
        points = _strokes(stage, x, z, heading, machine, paint)
        if rider is None:
            return
        figure = Figure(stage, u, foot, depth, rider, 1.75)
        points = {name: np.array(point) for name, point in points.items()}
        hip = points['saddle'] - (0, 0.04 * figure.scale)
        lean = (points['bars'] - points['saddle']) * 0.45
        shoulder = hip + lean - (0, 0.5 * figure.scale)
        for lift in (0.16, -0.1):
            pedal = points['crank'] - (0, lift * figure.scale)
            knee = (hip + pedal) / 2 + lean * 0.75
            figure.stroke([hip, knee, pedal], 0.14, bottom)
        figure.stroke([hip, shoulder], 0.30, top)
        figure.stroke([shoulder, (shoulder + points['bars']) / 2 + (0, 0.05 * figure.scale),
                       points['bars']], 0.085, top)
        head = (shoulder - (0, 0.22 * figure.scale) + lean * 0.15)
        metres = ((head[0] - u) / figure.scale, (foot - head[1]) / figure.scale)
        figure.head(*metres, skin, hair, False, abs(lean[0]) < 0.05 * figure.scale)

    stage.acts.append((depth, draw))
