"""Persons: walking, standing, and crowds too dense to tell apart."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from .stage import Stage

SKIN = ((240, 200, 170), (222, 176, 140), (184, 132, 96), (132, 88, 62), (96, 64, 48))
HAIR = ((38, 28, 24), (84, 56, 36), (150, 110, 60), (200, 170, 110), (120, 120, 122),
         (146, 64, 36))
TOPS = ((196, 44, 48), (44, 84, 160), (236, 232, 222), (44, 46, 52), (222, 172, 60),
         (70, 130, 92), (140, 84, 140), (226, 130, 110), (110, 140, 170), (92, 72, 58))
BOTTOMS = ((44, 54, 84), (40, 40, 44), (110, 96, 76), (84, 88, 92), (62, 72, 60), (150, 60, 70))


class Figure:
    """Draws a person in metres around a foot point; x to the right of the picture, y up."""

    def __init__(self, stage: Stage, u: float, foot: float, depth: float, identity: int,
                 tall: float) -> None:
        self.stage, self.u, self.foot, self.depth = stage, u, foot, depth
        self.identity, self.scale = identity, stage.focal / depth * tall / 1.75
        self.lean = np.sign((stage.rotation @ stage.sun)[0] or 1)

    def at(self, x: float, y: float) -> np.ndarray:
        return np.array((self.u + x * self.scale, self.foot - y * self.scale))

    def limb(self, joints: list[tuple[float, float]], width: float, colour: tuple) -> None:
        """Stroke through joints in metres."""
        self.stroke([self.at(*joint) for joint in joints], width, colour)

    def stroke(self, points: list[np.ndarray], width: float, colour: tuple) -> None:
        """Stroke through canvas points, darker on the side away from the sun."""
        dark = self.stage.lit(colour, self.depth, gain=0.72)
        light = self.stage.lit(colour, self.depth, gain=1.08)
        shift = np.array((self.lean * 0.22 * width * self.scale, 0))
        thick = width * self.scale
        for p, q in pairwise(points):
            self.stage.line(p, q, dark, thick, self.identity)
        if thick < 4:
            return
        for p, q in pairwise(points):
            self.stage.line(p + shift, q + shift, light, thick * 0.5, self.identity)

    def torso(self, x: float, shoulder: float, hip: float, wide: float, colour: tuple,
              hem: float = 1.0) -> None:
        outline = np.array([(x - wide * 0.8, shoulder + 0.02), (x + wide * 0.8, shoulder + 0.02),
                            (x + wide, shoulder - 0.1), (x + wide * 0.8 * hem, hip),
                            (x - wide * 0.8 * hem, hip), (x - wide, shoulder - 0.1)])
        points = np.array([self.at(*p) for p in outline])
        self.stage.fill(points, self.stage.lit(colour, self.depth, gain=0.78), self.identity)
        bright = outline.copy()
        bright[:, 0] = x + (outline[:, 0] - x) * 0.62 + self.lean * wide * 0.36
        self.stage.fill(np.array([self.at(*p) for p in bright]),
                        self.stage.lit(colour, self.depth, gain=1.08), self.identity)

    def head(self, x: float, y: float, skin: tuple, hair: tuple, long: bool, away: bool) -> None:
        stage, radius = self.stage, 0.115
        if long:
            self.limb([(x - 0.03, y), (x - 0.03, y - 0.18)], 0.22, hair)
        centre = self.at(x, y)
        stage.disk(centre, radius * self.scale, stage.lit(skin, self.depth, gain=0.85),
                   self.identity)
        stage.disk(centre + (self.lean * 0.03 * self.scale, 0), radius * 0.75 * self.scale,
                   stage.lit(skin, self.depth, gain=1.1), self.identity)
        cap = self.at(x - 0.01, y + (0.0 if away else 0.045))
        tone = stage.lit(hair, self.depth)
        angle = np.linspace(0.0 if not away else -0.6, np.pi + (0.6 if away else 0.0), 10)
        arc = cap + 0.128 * self.scale * np.stack([np.cos(angle), -np.sin(angle)], 1)
        stage.fill(arc, tone, self.identity)


def add_person(stage: Stage, s: float, z0: float, child: bool = False) -> None:
    """Put one pedestrian at street coordinates (s, z0)."""
    x, z, _ = stage.place(s, z0)
    if stage.visible(x, z, 0.5, 4.0):
        _stand(stage, x, z, stage.identity('person', single=True), child)


def _stand(stage: Stage, x: float, z: float, identity: int, child: bool) -> None:
    rng = stage.rng
    tall = rng.uniform(1.05, 1.35) if child else rng.uniform(1.55, 1.9)
    u, foot, depth = stage.spot(x, 0, z)
    look = dict(
        skin=stage.pick(SKIN), hair=stage.pick(HAIR),
        top=tuple(np.array(stage.pick(TOPS)) * rng.uniform(0.8, 1.1)), bottom=stage.pick(BOTTOMS))
    stage.cast_upright(x, z, 0.22, 0.2, tall)
    stage.cast(np.array([(x - 0.3, 0, z - 0.2), (x + 0.3, 0, z - 0.2), (x + 0.3, 0, z + 0.25),
                         (x - 0.3, 0, z + 0.25)]), 180)
    pose = rng.choice(('walk', 'stand', 'front', 'wave'), p=(0.45, 0.2, 0.28, 0.07))
    way, stride = float(rng.choice((-1, 1))), rng.uniform(0.12, 0.34)
    skirt, long, bag = rng.random(3) < (0.2, 0.35, 0.25)
    stage.acts.append((depth, lambda: _draw_walker(
        Figure(stage, u, foot, depth, identity, tall), look, str(pose), way, stride,
        bool(skirt), bool(long), bool(bag), bool(rng.random() < 0.5))))


def _draw_walker(figure: Figure, look: dict, pose: str, way: float, stride: float, skirt: bool,
                 long: bool, bag: bool, away: bool) -> None:
    side = pose == 'walk'
    wide = 0.16 if side else 0.22
    shoe, legs = (40, 34, 32), look['skin'] if skirt else look['bottom']
    swing = 0.75 * stride
    far_arm, near_arm = way * swing, -way * swing
    if side:
        figure.limb([(0, 1.38), (far_arm * 0.6, 1.12), (far_arm * 1.1, 0.9)], 0.085, look['top'])
        steps = ((-way * stride, -way * 0.06), (way * stride, way * 0.06))
    else:
        steps = ((-0.11, 0.0), (0.11, 0.0))
        if pose == 'front':
            steps = ((-0.10, 0.0), (0.13, 0.0))
    for i, (reach, knee) in enumerate(steps):
        hip = 0.0 if side else reach * 0.85
        lift = 0.05 if side and i == 0 else 0.0
        figure.limb([(hip, 0.88), (reach * 0.5 + knee * 0.5, 0.48), (reach, 0.07 + lift)],
                    0.14, legs)
        toe = way * 0.14 if side else 0.0
        figure.limb([(reach, 0.035 + lift), (reach + toe, 0.03 + lift * 0.5)], 0.09, shoe)
    if skirt:
        figure.torso(0, 1.0, 0.55, wide * 0.95, look['bottom'], 1.7)
    figure.torso(0, 1.45, 0.82, wide, look['top'])
    if side:
        figure.limb([(0, 1.38), (near_arm * 0.6, 1.1), (near_arm * 1.2 + way * 0.05, 0.88)],
                    0.09, look['top'])
        figure.limb([(near_arm * 1.2 + way * 0.05, 0.88), (near_arm * 1.25 + way * 0.07, 0.83)],
                    0.075, look['skin'])
    else:
        for sign in (-1, 1):
            if pose == 'wave' and sign * way > 0:
                joints = [(sign * 0.22, 1.38), (sign * 0.42, 1.5), (sign * 0.40, 1.85)]
            else:
                joints = [(sign * 0.24, 1.36), (sign * 0.30, 1.1), (sign * 0.28, 0.86)]
            figure.limb(joints, 0.085, look['top'])
            figure.limb([joints[-1], (joints[-1][0], joints[-1][1] - 0.03)], 0.08, look['skin'])
    if bag:
        spot = (-way * 0.2, 1.2) if side else (way * 0.32, 0.75)
        figure.torso(spot[0], spot[1] + 0.15, spot[1] - 0.2, 0.12, look['bottom'], 1.2)
    figure.limb([(0, 1.44), (way * 0.01, 1.54)], 0.09, look['skin'])
    figure.head(way * 0.02 if side else 0, 1.62, look['skin'], look['hair'], long,
                away and not side)


def add_crowd(stage: Stage, s: float, z0: float, count: int) -> None:
    """Put a group that nobody would outline one by one: a single crowd region."""
    x, z, _ = stage.place(s, z0)
    if not stage.visible(x, z, 2.0, 10.0):
        return
    identity = stage.identity('person', single=True, crowd=True)
    spread = 0.28 * count
    for _ in range(count):
        _stand(stage, x + stage.rng.uniform(-spread, spread) * np.cos(stage.yaw),
               z + stage.rng.uniform(-spread, spread) * abs(np.sin(stage.yaw))
               + stage.rng.uniform(-0.8, 0.8), identity, bool(stage.rng.random() < 0.15))
