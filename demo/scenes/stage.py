"""The stage of a scene: camera, light, and a canvas that carries colour and identity together.

World frame, metres: X to the right of the street, Y up, Z along the street. The camera stands at
(x, height, 0), turned by ``yaw``, and never pitches, so vertical lines stay vertical. Everything is
painted from far to near on a canvas ``SUPERSAMPLE`` times the size of the picture. Each stroke
writes a colour and an identity to the same pixels, without antialiasing, so labels are exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import cv2
import numpy as np

from .kinds import KINDS, Kind
from .moods import Colour, Mood

SUPERSAMPLE = 2
NEAR = 0.6
_SHIFT = 4


class Spot(NamedTuple):
    """Where a thing stands.

    Attributes:
        x, z, heading: in the world; see `Stage.place`.
        u, foot: canvas column and row of its foot.
        depth: metres from the camera.
        scale: canvas pixels of a metre there.
    """

    x: float
    z: float
    heading: float
    u: float
    foot: float
    depth: float
    scale: float


@dataclass
class Stage:
    """Camera, light and canvas; ``height`` and ``width`` count canvas pixels."""

    rng: np.random.Generator
    height: int
    width: int
    mood: Mood
    focal: float
    horizon: float
    camera_x: float
    camera_y: float
    yaw: float
    bend: float
    sun_azimuth: float
    sun_elevation: float
    colour: np.ndarray = field(init=False)
    ids: np.ndarray = field(init=False)
    shade: np.ndarray = field(init=False)
    kinds: list[Kind] = field(init=False)
    crowds: set[int] = field(default_factory=set)
    acts: list[tuple[float, Callable[[], None]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.colour = np.zeros((self.height, self.width, 3), np.uint8)
        self.ids = np.zeros((self.height, self.width), np.int32)
        self.shade = np.zeros((self.height, self.width), np.uint8)
        # An identity i < len(KINDS) stands for everything of this kind. The next identity is for
        # the leaves of trees, which get a grain. Later identities are single objects.
        self.kinds = [*KINDS.values(), KINDS['tree']]
        self.foliage = len(KINDS)
        self.sun = np.array([
            np.cos(self.sun_elevation) * np.sin(self.sun_azimuth),
            np.sin(self.sun_elevation),
            np.cos(self.sun_elevation) * np.cos(self.sun_azimuth),
        ])
        cos, sin = np.cos(self.yaw), np.sin(self.yaw)
        self.rotation = np.array([[cos, 0, -sin], [0, -1, 0], [sin, 0, cos]])
        self._towards_sun = self.sun.tolist()
        self.haze = np.asarray(self.mood.sky_low, float) * 0.9
        self._haze = self.haze.tolist()

    def identity(self, name: str, single: bool = False, crowd: bool = False) -> int:
        """Return the identity to paint with; ``single`` starts a new object."""
        if not single:
            return list(KINDS).index(name)
        self.kinds.append(KINDS[name])
        if crowd:
            self.crowds.add(len(self.kinds) - 1)
        return len(self.kinds) - 1

    # Geometry

    def place(self, s: float, z: float) -> tuple[float, float, float]:
        """Street coordinates (metres off the centre line, along it) to world X, Z and heading."""
        along = min(max(z, 0.0), 120.0)
        return s + self.bend * along**2, z, float(np.arctan(2 * self.bend * along))

    def to_camera(self, points: np.ndarray) -> np.ndarray:
        """World (N, 3) to camera (N, 3): right, down, forward."""
        return (np.asarray(points, float) - (self.camera_x, self.camera_y, 0)) @ self.rotation.T

    def to_pixels(self, seen: np.ndarray) -> np.ndarray:
        """Camera (N, 3) with positive depth to canvas (N, 2)."""
        return seen[:, :2] / seen[:, 2:] * self.focal + (self.width / 2, self.horizon)

    def spot(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Return canvas column, row and depth in metres of one world point."""
        seen = self.to_camera(np.array([[x, y, z]]))
        depth = max(float(seen[0, 2]), NEAR)
        seen[0, 2] = depth
        (u, v), = self.to_pixels(seen)
        return float(u), float(v), depth

    def visible(self, x: float, z: float, radius: float, nearest: float) -> bool:
        """Whether a thing on the ground may be seen, no nearer than ``nearest`` metres."""
        seen = self.to_camera(np.array([[x, 0.0, z]]))[0]
        reach = self.width / 2 / self.focal * max(seen[2], 0) + radius
        return bool(seen[2] > nearest and abs(seen[0]) < reach)

    def stand(self, s: float, along: float, radius: float, nearest: float) -> Spot | None:
        """The spot at street coordinates; None where nothing of that radius is `visible`."""
        x, z, heading = self.place(s, along)
        if not self.visible(x, z, radius, nearest):
            return None
        u, foot, depth = self.spot(x, 0, z)
        return Spot(x, z, heading, u, foot, depth, self.focal / depth)

    def pick(self, choices: Sequence[Any]) -> Any:
        """One of the choices, each as likely."""
        return choices[self.rng.integers(len(choices))]

    # Light

    def light(self, normal: np.ndarray | None = None) -> np.ndarray:
        """Return the (3,) multiplier of an albedo whose surface faces ``normal``."""
        return np.array(self._light(normal))

    def _light(self, normal: np.ndarray | None) -> list[float]:
        facing, bounce = 0.5, 1.0
        if normal is not None:
            facing = max(0.0, sum(
                float(n) * s for n, s in zip(normal, self._towards_sun, strict=True)))
            bounce = 0.9 + 0.1 * float(normal[1])
        return [a * bounce + s * facing
                for a, s in zip(self.mood.ambient, self.mood.sun, strict=True)]

    def fog(self, colour: Colour, depth: float) -> np.ndarray:
        """Blend colours (..., 3) with the haze of ``depth`` metres of air."""
        clear = np.exp(-max(depth, 0.0) / self.mood.haze_metres)
        return np.asarray(colour, float) * clear + self.haze * (1 - clear)

    def lit(self, albedo: Colour, depth: float, normal: np.ndarray | None = None,
            gain: float = 1.0) -> tuple[int, int, int]:
        """Return the RGB of an albedo under the light and the haze."""
        # This runs for every stroke; plain floats are several times faster than small arrays.
        clear = math.exp(-max(depth, 0.0) / self.mood.haze_metres)
        return tuple(
            int(min(max(float(a) * light * gain * clear + haze * (1 - clear), 0), 255))
            for a, light, haze in zip(albedo, self._light(normal), self._haze, strict=True)
        )

    # Strokes

    def fill(self, points: np.ndarray, colour: Colour, identity: int) -> None:
        """Fill a polygon given in canvas pixels (N, 2)."""
        corners = _fixed(points)
        cv2.fillPoly(self.colour, corners, tuple(map(int, colour)), cv2.LINE_8, _SHIFT)
        cv2.fillPoly(self.ids, corners, identity, cv2.LINE_8, _SHIFT)

    def line(self, start: Colour, end: Colour, colour: Colour, thickness: float,
             identity: int) -> None:
        """Draw a round-ended stroke between two canvas points; never thinner than 2 pixels."""
        p, q = (tuple(int(round(float(c) * (1 << _SHIFT))) for c in end_) for end_ in (start, end))
        width = max(2, round(thickness))
        cv2.line(self.colour, p, q, tuple(map(int, colour)), width, cv2.LINE_8, _SHIFT)
        cv2.line(self.ids, p, q, identity, width, cv2.LINE_8, _SHIFT)

    def disk(self, centre: Colour, radius: float, colour: Colour, identity: int) -> None:
        """Fill a disk; centre and radius in canvas pixels."""
        c = tuple(int(round(float(x) * (1 << _SHIFT))) for x in centre)
        r = max(1 << _SHIFT, int(radius * (1 << _SHIFT)))
        cv2.circle(self.colour, c, r, tuple(map(int, colour)), -1, cv2.LINE_8, _SHIFT)
        cv2.circle(self.ids, c, r, identity, -1, cv2.LINE_8, _SHIFT)

    def veil(self, points: np.ndarray, colour: Colour, share: float, identity: int) -> None:
        """Fill a polygon (N, 2) with ``share`` of a colour over what is there."""
        low = np.clip(np.floor(points.min(0)), 0, (self.width, self.height)).astype(int)
        high = np.clip(np.ceil(points.max(0)) + 1, 0, (self.width, self.height)).astype(int)
        if (high <= low).any():
            return
        under = self.colour[low[1]:high[1], low[0]:high[0]].astype(np.float32)
        self.fill(points, colour, identity)
        patch = self.colour[low[1]:high[1], low[0]:high[0]]
        patch[:] = under * (1 - share) + patch * np.float32(share)

    def dabs(self, centres: np.ndarray, radii: np.ndarray, colours: np.ndarray,
             identity: int) -> None:
        """Fill disks (N, 2), (N,), (N, 3) in the order given."""
        one = 1 << _SHIFT
        spots = np.round(np.clip(centres, -3e4, 3e4) * one).astype(int).tolist()
        sizes = np.maximum(radii * one, one).astype(int).tolist()
        for spot, size, tone in zip(spots, sizes, colours.tolist(), strict=True):
            cv2.circle(self.colour, spot, size, tone, -1, cv2.LINE_8, _SHIFT)
            cv2.circle(self.ids, spot, size, identity, -1, cv2.LINE_8, _SHIFT)

    def face(self, points: np.ndarray, colour: Colour, identity: int) -> None:
        """Fill a world polygon (N, 3), cut at the near plane."""
        seen = clip_near(self.to_camera(points))
        if len(seen) >= 3:
            self.fill(self.to_pixels(seen), colour, identity)

    def textured(self, origin: np.ndarray, right: np.ndarray, size: tuple[float, float],
                 texture: np.ndarray, identity: int) -> None:
        """Paste a texture on an upright rectangle of ``size`` (width, height) metres.

        ``origin`` is its lower left corner and ``right`` a unit vector, both world (3,);
        ``texture`` is (h, w, 3) uint8, already lit.
        """
        wide, high = size
        corners = np.array([origin, origin + right * wide, origin + right * wide + (0, high, 0),
                            origin + np.array((0, high, 0))])
        seen = clip_near(self.to_camera(corners))
        if len(seen) < 3:
            return
        outline = self.to_pixels(seen)
        low = np.floor(np.clip(outline.min(0), 0, (self.width, self.height))).astype(int)
        high_ = np.ceil(np.clip(outline.max(0) + 1, 0, (self.width, self.height))).astype(int)
        if (high_ - low).min() < 1:
            return
        rows, columns = texture.shape[:2]
        base, across, up = (
            self.to_camera(corners[3:4])[0],
            self.rotation @ right * (wide / columns),
            self.rotation @ np.array((0, -high / rows, 0)),
        )
        lens = np.array([[self.focal, 0, self.width / 2 - low[0]],
                         [0, self.focal, self.horizon - low[1]], [0, 0, 1]])
        matrix = lens @ np.stack([across, up, base], 1)
        if abs(np.linalg.det(matrix)) < 1e-9:
            return
        box = tuple(int(n) for n in high_ - low)
        pasted = cv2.warpPerspective(texture, matrix, box, flags=cv2.INTER_LINEAR,
                                     borderMode=cv2.BORDER_REPLICATE)
        mask = np.zeros(box[::-1], np.uint8)
        cv2.fillPoly(mask, np.round((outline - low) * (1 << _SHIFT)).astype(np.int32)[None], 1,
                     cv2.LINE_8, _SHIFT)
        region = np.s_[low[1]:high_[1], low[0]:high_[0]]
        inside = mask.astype(bool)
        self.colour[region][inside] = pasted[inside]
        self.ids[region][inside] = identity

    def cast(self, points: np.ndarray, strength: int = 255) -> None:
        """Let the points (N, 3) of a convex thing throw their shadow on the ground."""
        points = np.asarray(points, float)
        reach = np.minimum(points[:, 1:2] / self.sun[1], 25.0)
        ground = points - reach * self.sun
        ground[:, 1] = 0
        hull = cv2.convexHull(ground[:, [0, 2]].astype(np.float32))[:, 0]
        seen = clip_near(self.to_camera(np.insert(hull, 1, 0, axis=1)))
        if len(seen) < 3:
            return
        cv2.fillPoly(self.shade, _fixed(self.to_pixels(seen)), strength, cv2.LINE_8, _SHIFT)

    def cast_upright(self, x: float, z: float, foot: float, head: float, high: float) -> None:
        """The shadow of something `high` metres tall, `foot` and `head` half its widths."""
        self.cast(np.array([(x - foot, 0, z), (x + foot, 0, z), (x - head, high, z),
                            (x + head, high, z)]))


def _fixed(points: np.ndarray) -> np.ndarray:
    """Canvas pixels (N, 2) as OpenCV takes them with a fraction of `_SHIFT` bits: (1, N, 2)."""
    return np.round(np.clip(points, -6e4, 6e4) * (1 << _SHIFT)).astype(np.int32)[None]


def clip_near(seen: np.ndarray) -> np.ndarray:
    """Cut a camera-space polygon (N, 3) at depth NEAR; (M, 3) with M = 0 if it is all nearer."""
    inside = seen[:, 2] >= NEAR
    if inside.all():
        return seen
    kept = []
    for i, point in enumerate(seen):
        before = seen[i - 1]
        if inside[i] != inside[i - 1]:
            t = (NEAR - before[2]) / (point[2] - before[2])
            kept.append(before + t * (point - before))
        if inside[i]:
            kept.append(point)
    return np.array(kept).reshape(-1, 3)
