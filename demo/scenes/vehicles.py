"""Cars, buses and lorries: small meshes extruded from a side profile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .stage import Stage

_TYRE, _GLASS = (34, 34, 36), (62, 76, 88)
PAINTS = ((196, 34, 40), (28, 66, 150), (232, 232, 230), (38, 40, 44), (150, 154, 160),
          (226, 174, 36), (34, 110, 82), (104, 150, 190), (128, 34, 54), (214, 104, 40),
          (196, 190, 170), (86, 92, 100))

Profile = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Shape:
    """Side profiles from tail to nose as (along, up) in metres; ``wheels`` along the length."""

    width: float
    body: Profile
    cabin: Profile
    wheels: tuple[float, ...]
    radius: float
    posts: tuple[float, ...]
    tuck: float = 0.16


SHAPES = {
    'sedan': Shape(1.8, ((0.05, 0.3), (0.0, 0.75), (0.15, 0.98), (1.0, 1.0), (3.3, 0.95),
                         (4.35, 0.8), (4.5, 0.6), (4.45, 0.3)),
                   ((0.7, 0.98), (1.35, 1.42), (2.45, 1.45), (3.35, 0.95)), (0.8, 3.6), 0.33,
                   (1.75,)),
    'hatch': Shape(1.75, ((0.05, 0.3), (0.0, 0.8), (0.1, 1.0), (3.0, 0.98), (3.75, 0.82),
                          (3.9, 0.6), (3.85, 0.3)),
                   ((0.1, 1.0), (0.5, 1.48), (1.95, 1.52), (2.95, 0.98)), (0.65, 3.15), 0.32,
                   (1.35,)),
    'suv': Shape(1.9, ((0.05, 0.38), (0.0, 0.9), (0.08, 1.1), (3.2, 1.1), (4.3, 1.0), (4.5, 0.75),
                       (4.45, 0.38)),
                 ((0.08, 1.1), (0.35, 1.68), (2.4, 1.72), (3.2, 1.1)), (0.8, 3.6), 0.39,
                 (1.2, 2.1)),
    'van': Shape(1.95, ((0.0, 0.36), (0.0, 1.2), (3.9, 1.18), (4.7, 1.0), (4.8, 0.7),
                        (4.75, 0.36)),
                 ((0.0, 1.2), (0.08, 2.0), (3.2, 2.0), (4.0, 1.18)), (0.9, 3.8), 0.36,
                 (1.2, 2.4), 0.1),
    'bus': Shape(2.5, ((0.0, 0.4), (0.0, 1.35), (10.5, 1.35), (10.6, 0.4)),
                 ((0.0, 1.35), (0.05, 3.05), (10.4, 3.05), (10.5, 1.35)), (2.4, 8.4), 0.5,
                 tuple(np.arange(1.5, 10.4, 1.45)), 0.04),
    'cab': Shape(2.2, ((0.0, 0.5), (0.0, 1.5), (2.0, 1.5), (2.1, 0.5)),
                 ((0.0, 1.5), (0.0, 2.4), (1.6, 2.4), (2.0, 1.5)), (0.8, 1.3), 0.45, (0.5,), 0.1),
}


def _flank(x: float, low: float, high: float, tail: float, nose: float) -> np.ndarray:
    """An upright rectangle along the vehicle: (4, 3)."""
    return np.array([(x, low, tail), (x, low, nose), (x, high, nose), (x, high, tail)])


def _across(left: float, right: float, low: float, high: float, z: float) -> np.ndarray:
    """An upright rectangle across the vehicle: (4, 3)."""
    return np.array([(left, low, z), (right, low, z), (right, high, z), (left, high, z)])


class _Mesh:
    """Local frame of one vehicle: x to its left side, y up, z from tail to nose."""

    def __init__(self, stage: Stage, x: float, z: float, heading: float, length: float,
                 depth: float, identity: int) -> None:
        self.stage, self.depth, self.identity = stage, depth, identity
        self.right = np.array((np.cos(heading), 0, -np.sin(heading)))
        self.ahead = np.array((np.sin(heading), 0, np.cos(heading)))
        self.origin = np.array((x, 0, z)) - self.ahead * length / 2
        self.eye = np.array((stage.camera_x, stage.camera_y, 0.0))

    def world(self, points: np.ndarray) -> np.ndarray:
        points = np.asarray(points, float)
        return (self.origin + points[:, :1] * self.right + points[:, 1:2] * (0, 1, 0)
                + points[:, 2:] * self.ahead)

    def face(self, points: np.ndarray, colour: tuple, outward: np.ndarray, gain: float = 1.0,
             glow: bool = False) -> None:
        """Paint one convex face if its outward normal (local) looks at the camera."""
        corners = self.world(points)
        normal = self.world(np.array([outward]))[0] - self.origin
        normal = normal / np.linalg.norm(normal)
        if normal @ (self.eye - corners.mean(0)) <= 0:
            return
        tone = self.stage.fog(colour, self.depth) if glow else self.stage.lit(
            colour, self.depth, normal, gain)
        self.stage.face(corners, tone, self.identity)

    def loft(self, profile: Profile, low: float, high: float, colours: list[tuple],
             side_colour: tuple) -> None:
        """Extrude a profile whose half width goes from ``low`` at its foot to ``high`` on top."""
        points = np.array(profile)
        base, crown = points[:, 1].min(), points[:, 1].max()
        half = low + (high - low) * (points[:, 1] - base) / max(crown - base, 1e-6)
        left = np.stack([half, points[:, 1], points[:, 0]], 1)
        right = left * (-1, 1, 1)
        for i, colour in enumerate(colours):
            (a0, b0), (a1, b1) = profile[i], profile[i + 1]
            strip = np.array([left[i], left[i + 1], right[i + 1], right[i]])
            self.face(strip, colour, np.array((0, a1 - a0, b0 - b1)))
        tilt = (low - high) / max(crown - base, 1e-6)
        self.face(left, side_colour, np.array((1, tilt, 0)))
        self.face(right, side_colour, np.array((-1, tilt, 0)))


def _wheel(mesh: _Mesh, x: float, along: float, radius: float) -> None:
    ring = np.linspace(0, 2 * np.pi, 17)[:-1]
    circle = np.stack([np.full(16, x), radius + radius * np.sin(ring),
                       along + radius * np.cos(ring)], 1)
    hub = circle * (1, 0.58, 0.58) + (0, radius * 0.42, along * 0.42)
    mesh.face(circle, _TYRE, np.array((np.sign(x), 0, 0)))
    mesh.face(hub, (150, 152, 156), np.array((np.sign(x), 0, 0)))
    mesh.face(hub * (1, 0.35, 0.35) + (0, radius * 0.65, along * 0.65), (70, 70, 74),
              np.array((np.sign(x), 0, 0)))


def _draw_shape(mesh: _Mesh, shape: Shape, paint: tuple, forward: float = 0.0) -> None:
    """Draw body, cabin, wheels and lamps; ``forward`` shifts all along the length."""
    stage, half = mesh.stage, shape.width / 2
    body = tuple((a + forward, b) for a, b in shape.body)
    cabin = tuple((a + forward, b) for a, b in shape.cabin)
    wheels = [a + forward for a in shape.wheels]
    for along in wheels:
        for x in (-half + 0.12, half - 0.12):
            _wheel(mesh, x, along, shape.radius)
    mesh.loft(body, half, half, [paint] * (len(body) - 1), paint)
    # The lower door panels reflect the road.
    bottom, shoulder = body[0][1], max(b for _, b in body)
    for x in (-half, half):
        sill = np.array([(x, bottom, body[0][0]), (x, bottom, body[-1][0]),
                         (x, bottom + 0.26, body[-1][0] + 0.02), (x, bottom + 0.26, body[0][0])])
        mesh.face(sill, paint, np.array((np.sign(x), 0, 0)), 0.72)
        crease = _flank(x, shoulder - 0.24, shoulder - 0.17, body[0][0] + 0.1,
                        body[-1][0] - 0.35)
        mesh.face(crease, paint, np.array((np.sign(x), 0.4, 0)), 1.2)
        for along in wheels:
            arch = np.linspace(0, np.pi, 9)
            grown = shape.radius + 0.09
            mesh.face(np.stack([np.full(9, x), shape.radius + grown * np.sin(arch),
                                along + grown * np.cos(arch)], 1), (24, 24, 26),
                      np.array((np.sign(x), 0, 0)))
            _wheel(mesh, x * 1.01, along, shape.radius)
    roof = [_GLASS, paint, _GLASS]
    mesh.loft(cabin, half - 0.04, half - shape.tuck, roof, paint)
    _side_windows(mesh, shape, cabin, half)
    tail, nose = body[0][0], body[-1][0]
    nose_up = body[-2][1] - 0.06
    grille = _across(-half * 0.5, half * 0.5, bottom + 0.28, nose_up, nose + 0.05)
    mesh.face(grille, (38, 38, 42), np.array((0, 0, 1)))
    for x in (-1, 1):
        for z, colour, way in ((tail - 0.02, (186, 26, 28), -1), (nose + 0.06, (250, 244, 214), 1)):
            up = bottom + 0.42
            lamp = _across(x * half * 0.92, x * half * 0.55, up, up + 0.16, z)
            mesh.face(lamp, colour, np.array((0, 0, way)), 1.1, stage.mood.lit_windows > 0.3)
    for z, way in ((tail - 0.02, -1), (nose + 0.06, 1)):
        plate = _across(-0.26, 0.26, bottom + 0.12, bottom + 0.25, z)
        mesh.face(plate, (236, 232, 208), np.array((0, 0, way)))


def _side_windows(mesh: _Mesh, shape: Shape, cabin: Profile, half: float) -> None:
    points = np.array(cabin)
    low, high = points[:, 1].min(), points[:, 1].max()
    up = (np.array((low, high, high, low)) - low) / (high - low)
    frame = np.array((0.08, 0.86, 0.86, 0.08))
    # Inset the trapezoid: along its slanted pillars, then from them.
    z = np.array([np.interp(f, up[:2], points[:2, 0]) for f in frame[:2]]
                 + [np.interp(f, up[[3, 2]], points[[3, 2], 0]) for f in frame[2:]])
    z += np.array((0.12, 0.10, -0.10, -0.12))
    y = low + frame * (high - low)
    x = half - 0.03 + (0.04 - shape.tuck) * frame
    outline = np.stack([x, y, z], 1)
    for sign in (-1, 1):
        normal = np.array((sign, 0.2, 0))
        mesh.face(outline * (sign, 1, 1), _GLASS, normal, 0.9)
        glint = np.array([outline[0], outline[1], outline[1] * 0.7 + outline[2] * 0.3,
                          outline[0] * 0.85 + outline[3] * 0.15])
        mesh.face(glint * (sign, 1, 1), (132, 150, 164), normal)
        for post in shape.posts:
            at = np.array([(x[0], y[0], post), (x[1], y[1], post), (x[1], y[1], post + 0.1),
                           (x[0], y[0], post + 0.1)])
            at[:, 2] += cabin[0][0] - shape.cabin[0][0]
            mesh.face(at * (sign, 1, 1), (36, 38, 42), normal)


def add_motor(stage: Stage, name: str, s: float, z0: float, flip: bool, paint: tuple) -> None:
    """Put a car, bus or lorry on the street; ``flip`` makes it face the viewer's way back."""
    length = {'bus': 10.6, 'lorry': 7.0}.get(name) or SHAPES[name].body[-1][0]
    high = {'bus': 3.0, 'lorry': 3.0}.get(name) or SHAPES[name].cabin[1][1]
    spot = stage.stand(s, z0, length / 2, 4.5 + length / 2)
    if spot is None:
        return
    # Coach builders like light colours, and so do night scenes.
    paint = tuple(max(c, 80.0) for c in paint) if name == 'bus' else paint
    kind = {'bus': 'bus', 'lorry': 'truck'}.get(name, 'car')
    identity = stage.identity(kind, single=True)
    heading, depth = spot.heading + (np.pi if flip else 0.0), spot.depth
    mesh = _Mesh(stage, spot.x, spot.z, heading, length, depth, identity)
    half = 0.9 if kind == 'car' else 1.2
    base = np.array([(i * half, 0, j) for i in (-1, 1) for j in (0, length)])
    stage.cast(mesh.world(np.concatenate([base, base * (0.85, 0, 0.8)
                                          + (0, high, 0.1 * length)])))
    stage.cast(mesh.world(base + (0, 0.05, 0)))

    def draw() -> None:
        if name == 'lorry':
            _draw_lorry(mesh, paint)
            return
        _draw_shape(mesh, SHAPES[name], paint)
        if name == 'bus':
            _trim_bus(mesh, paint)

    stage.acts.append((depth, draw))


def _trim_bus(mesh: _Mesh, paint: tuple) -> None:
    """Light bands along the sides, a panelled tail and the destination boards."""
    for sign in (-1, 1):
        band = _flank(sign * 1.26, 0.85, 1.1, 0.1, 10.4)
        mesh.face(band, (238, 236, 228), np.array((sign, 0, 0)))

    def panel(x: float, low: float, high: float, z: float, colour: tuple, glow: bool) -> None:
        mesh.face(_across(-x, x, low, high, z), colour, np.array((0, 0, 1 if z > 0 else -1)),
                  glow=glow)

    panel(1.19, 1.3, 3.03, -0.02, paint, False)
    panel(1.0, 1.75, 2.55, -0.03, _GLASS, False)
    panel(0.95, 2.66, 2.92, -0.03, (250, 176, 60), True)
    panel(1.22, 0.85, 1.1, -0.03, (238, 236, 228), False)
    panel(0.8, 2.6, 2.9, 10.58, (250, 176, 60), True)


def _draw_lorry(mesh: _Mesh, paint: tuple) -> None:
    box = ((0.0, 0.75), (0.0, 3.0), (4.7, 3.0), (4.7, 0.75))
    cargo = tuple(np.clip(np.array((226, 224, 216)) + np.array(paint) * 0.08, 0, 255))

    def load() -> None:
        for along in (1.0, 3.6):
            for x in (-1.05, 1.05):
                _wheel(mesh, x, along, 0.48)
        mesh.loft(box, 1.15, 1.15, [cargo] * 3, cargo)
        for sign in (-1, 1):
            stripe = _flank(sign * 1.16, 1.5, 2.1, 0.3, 4.4)
            mesh.face(stripe, paint, np.array((sign, 0, 0)))
        for x in (-0.02, 0.04):
            door = _across(x, x + 0.02, 0.8, 2.9, -0.02)
            mesh.face(door, (90, 90, 90), np.array((0, 0, -1)))

    def cab() -> None:
        _draw_shape(mesh, SHAPES['cab'], paint, forward=4.85)

    facing = mesh.ahead @ (mesh.eye - mesh.origin) > 4.75
    for part in (load, cab) if facing else (cab, load):
        part()
