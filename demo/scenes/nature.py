"""Trees and bushes: a tapered trunk and a crown of leaf dabs, dark to light towards the sun."""

from __future__ import annotations

import numpy as np

from .stage import Stage

_LOBES = {
    # Crown lobes as (x, y, radius), in crown radii around the crown's centre, y upwards.
    'round': ((0, 0, 0.8), (-0.45, -0.15, 0.55), (0.45, -0.1, 0.55), (0, 0.45, 0.6),
              (-0.3, 0.3, 0.5), (0.35, 0.3, 0.5)),
    'spreading': ((0, 0.1, 0.65), (-0.75, -0.05, 0.5), (0.75, 0, 0.5), (-0.35, 0.3, 0.55),
                  (0.4, 0.35, 0.5)),
    'poplar': ((0, -1.0, 0.42), (0, -0.4, 0.5), (0, 0.3, 0.48), (0, 0.9, 0.36), (0, 1.35, 0.2)),
    'conifer': ((0, -0.95, 0.85), (0, -0.45, 0.65), (0, 0.05, 0.48), (0, 0.5, 0.32),
                (0, 0.9, 0.18)),
}


def _sun_on_screen(stage: Stage) -> np.ndarray:
    """Direction of the light in the picture, y upwards: (2,)."""
    right = float((stage.rotation @ stage.sun)[0])
    direction = np.array((right, max(stage.sun[1], 0.4)))
    return direction / np.linalg.norm(direction)


def _crown(stage: Stage, centre: np.ndarray, radius: float, lobes: np.ndarray, leaf: np.ndarray,
           depth: float, identity: int, count: int, dab: float) -> None:
    """Scatter ``count`` dabs over the lobes; centre and radius in canvas pixels."""
    rng = stage.rng
    for x, y, r in lobes:
        # A dark core behind the leaves leaves few holes.
        stage.disk(centre + np.array((x, -y)) * radius, r * radius * 0.82,
                   stage.lit(leaf, depth, gain=0.55), identity)
    share = lobes[:, 2] ** 2 / (lobes[:, 2] ** 2).sum()
    which = rng.choice(len(lobes), count, p=share)
    angle, reach = rng.uniform(0, 2 * np.pi, count), np.sqrt(rng.random(count))
    offset = np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]
    place = lobes[which, :2] + offset * lobes[which, 2:] * 1.02
    span = np.abs(lobes[:, 1]).max() + 0.6
    bright = (offset @ _sun_on_screen(stage)) * 0.34 + place[:, 1] / span * 0.20
    bright += rng.normal(0, 0.13, count)
    sizes = dab * radius * rng.uniform(0.6, 1.3, count)
    spots = centre + place * (radius, -radius)
    warm = np.asarray(stage.mood.sun) * 20
    tones = leaf * stage.light() * (1 + np.clip(bright, -0.5, 0.6))[:, None]
    tones += np.clip(bright, 0, 1)[:, None] * warm
    tones = np.clip(stage.fog(tones, depth), 0, 255)
    order = np.argsort(bright)
    stage.dabs(spots[order], sizes[order], tones[order], identity)


def add_tree(stage: Stage, s: float, z0: float, high: float, shape: str, leaf: tuple) -> None:
    """Plant a tree ``high`` metres tall at street coordinates (s, z0)."""
    rng = stage.rng
    wide = {'poplar': 0.22, 'conifer': 0.30, 'spreading': 0.38, 'round': 0.33}[shape] * high
    wide *= rng.uniform(0.85, 1.15)
    spot = stage.stand(s, z0, wide, 4.0)
    if spot is None:
        return
    x, z, _, u, foot, depth, scale = spot
    radius = wide * scale
    lobes = np.array(_LOBES[shape]) + rng.normal(0, 0.06, (len(_LOBES[shape]), 3))
    lobes[:, 2] = np.maximum(lobes[:, 2], 0.12)
    middle = high - (lobes[:, 1] + lobes[:, 2]).max() * wide
    leaf_tone = np.asarray(leaf) * rng.uniform(0.85, 1.12, 3)
    angles = np.linspace(0, 2 * np.pi, 9)[:-1]
    for height in (0.5 * middle, middle, middle + 0.5 * wide):
        stage.cast(np.stack([x + wide * 0.75 * np.cos(angles), np.full(8, height),
                             z + wide * 0.75 * np.sin(angles)], 1))
    stage.cast(np.array([(x - 0.12, 0, z), (x + 0.12, 0, z), (x, middle, z)]))

    def draw() -> None:
        identity = stage.identity('tree')
        bark = np.array((112, 88, 66)) * rng.uniform(0.6, 1.1)
        girth = max(1.2, 0.028 * high * scale * rng.uniform(0.8, 1.3))
        top = foot - middle * scale
        outline = np.array([(u - girth * 1.5, foot), (u - girth * 0.8, foot - 0.3 * scale),
                            (u - girth * 0.5, top), (u + girth * 0.5, top),
                            (u + girth * 0.8, foot - 0.3 * scale), (u + girth * 1.5, foot)])
        stage.fill(outline, stage.lit(bark, depth, gain=0.75), identity)
        lean = girth * 0.45 * np.sign(_sun_on_screen(stage)[0] or 1)
        stage.line((u + lean, foot - 0.25 * scale), (u + lean * 0.6, top),
                   stage.lit(bark, depth, gain=1.2), girth * 0.5, identity)
        if shape in ('round', 'spreading'):
            for lobe in lobes[1:4]:
                end = (u + lobe[0] * radius, top - lobe[1] * radius)
                start = (u, top + 0.55 * radius * lobes[0, 2])
                stage.line(start, end, stage.lit(bark, depth, gain=0.7), girth * 0.5, identity)
        count = int(np.clip(radius * 4.5, 30, 520))
        dab = float(np.clip(1.9 / np.sqrt(count), 0.07, 0.2))
        _crown(stage, np.array((u, top)), radius, lobes, leaf_tone, depth, stage.foliage, count,
               dab)

    stage.acts.append((depth, draw))


def add_bush(stage: Stage, s: float, z0: float, wide: float, high: float, leaf: tuple,
             bloom: tuple | None) -> None:
    """Plant a bush (ADE20K: plant), in flower if ``bloom`` gives a colour."""
    rng = stage.rng
    spot = stage.stand(s, z0, wide, 3.5)
    if spot is None:
        return
    x, z, _, u, foot, depth, scale = spot
    radius = high * scale * 0.6
    spread = wide / high * 0.8
    n = max(3, round(spread * 3))
    lobes = np.stack([np.linspace(-spread, spread, n), rng.uniform(-0.15, 0.25, n),
                      rng.uniform(0.6, 0.85, n)], 1)
    tone = np.asarray(leaf) * rng.uniform(0.8, 1.15, 3)
    ring = np.linspace(0, 2 * np.pi, 9)[:-1]
    stage.cast(np.stack([x + wide * 0.6 * np.cos(ring), np.full(8, high * 0.7),
                         z + wide * 0.6 * np.sin(ring)], 1))

    def draw() -> None:
        identity = stage.identity('plant')
        count = int(np.clip(radius * spread * 4, 20, 220))
        centre = np.array((u, foot - 0.62 * radius))
        _crown(stage, centre, radius, lobes, tone, depth, identity, count, 0.15)
        if bloom is not None:
            for _ in range(count // 4):
                lobe = lobes[rng.integers(n)]
                spot = centre + (lobe[:2] + rng.normal(0, 0.4, 2) * lobe[2]) * (radius, -radius)
                stage.disk(spot, max(1.0, 0.09 * radius), stage.lit(bloom, depth), identity)

    stage.acts.append((depth, draw))
