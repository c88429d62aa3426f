"""Buildings: facades with windows, shops and lights, flat or gabled roofs, shop signs."""

from __future__ import annotations

import cv2
import numpy as np

from .stage import Stage

_WALLS = {
    'brick': ((150, 78, 62), (168, 98, 74), (128, 70, 60), (176, 124, 96)),
    'plaster': ((226, 208, 176), (214, 190, 150), (200, 212, 206), (222, 184, 168),
                (236, 228, 214), (186, 196, 170), (232, 212, 140)),
    'concrete': ((168, 166, 160), (150, 152, 154), (184, 178, 166)),
    'glass': ((84, 112, 128), (70, 92, 116), (104, 124, 128)),
    'boards': ((232, 228, 218), (168, 188, 198), (206, 186, 140), (150, 90, 78), (150, 168, 140)),
}
_ROOFS = ((150, 74, 58), (124, 66, 56), (88, 84, 86), (104, 92, 84), (70, 78, 88))
_AWNINGS = ((176, 44, 44), (40, 96, 72), (44, 70, 128), (206, 152, 52))


def facade(stage: Stage, style: str, wall: tuple, wide: float, high: float, scale: float,
           normal: np.ndarray, depth: float, shop: bool, storey: float, bay: float) -> np.ndarray:
    """Draw one lit wall, ``scale`` texels to the metre, as (h, w, 3) uint8."""
    rng, mood = stage.rng, stage.mood
    rows, columns = max(2, int(high * scale)), max(2, int(wide * scale))
    light = stage.light(normal)
    wall_tone = np.asarray(wall, np.float32) * light
    picture = np.empty((rows, columns, 3), np.float32)
    picture[:] = wall_tone
    grain = rng.standard_normal((rows // 3 + 2, columns // 3 + 2), np.float32)
    picture *= 1 + 0.03 * cv2.resize(grain, (columns, rows))[..., None]
    if style == 'brick' and scale > 9:
        picture[:: max(2, int(0.25 * scale))] *= 0.88
    if style == 'boards' and scale > 7:
        picture[:: max(2, int(0.3 * scale))] *= 0.86
    # Walls darken towards the ground and under the eaves.
    fall = np.linspace(1.04, 0.84, rows, dtype=np.float32)
    picture *= fall[:, None, None]

    def block(x0: float, y0: float, x1: float, y1: float, value: np.ndarray) -> None:
        # Metres from the lower left corner.
        top, low = rows - y1 * scale, rows - y0 * scale
        box = picture[max(0, round(top)):max(0, round(low)),
                      max(0, round(x0 * scale)):max(0, round(x1 * scale))]
        if box.size:
            box[:] = value

    sky = np.asarray(mood.sky_low) * 0.45 + np.asarray(mood.sky_top) * 0.2
    lamp = np.array((255, 214, 138))
    trim = np.clip(np.array((236, 232, 222)) * light, 0, 255)
    bays = max(1, int(wide // bay))
    margin = (wide - bays * bay) / 2
    tall = style == 'glass'
    pane = (bay * (0.86 if tall else rng.uniform(0.38, 0.6)),
            storey * (0.82 if tall else rng.uniform(0.46, 0.62)))
    storeys = max(1, int((high - 0.5) // storey))
    for level in range(storeys):
        foot = level * storey + (storey - pane[1]) * 0.55
        if not tall and level and scale > 4:
            block(0, level * storey - 0.06, wide, level * storey + 0.10, wall_tone * 0.86)
        if shop and level == 0:
            continue
        for i in range(bays):
            x0 = margin + i * bay + (bay - pane[0]) / 2
            x1, head = x0 + pane[0], foot + pane[1]
            if not tall:
                block(x0 - 0.10, foot - 0.14, x1 + 0.10, head + 0.10, trim * 0.9)
            if rng.random() < mood.lit_windows:
                block(x0, foot, x1, head, lamp * rng.uniform(0.65, 1.0))
            else:
                glass = sky * rng.uniform(0.45, 1.0) + 10
                block(x0, foot, x1, head, glass * 0.72)
                block(x0, foot + pane[1] * 0.5, x1, head, glass)
                if rng.random() < 0.3:
                    block(x0, foot + pane[1] * 0.55, x1, head, trim * 0.75)
            if not tall and scale > 6:
                block((x0 + x1) / 2 - 0.04, foot, (x0 + x1) / 2 + 0.04, head, trim * 0.85)
    if shop:
        front = lamp * 0.85 if rng.random() < 0.25 + mood.lit_windows else sky * 0.5 + 12
        block(0, 0, wide, storey * 0.88, wall_tone * 0.55)
        for i in range(bays):
            x0 = margin + i * bay
            block(x0 + 0.15, 0.4, x0 + bay - 0.15, storey * 0.74, front * rng.uniform(0.8, 1.05))
            block(x0 + 0.15, 0.4, x0 + bay - 0.15, 0.4 + 0.25 * storey, front * 0.6)
    door = margin + rng.integers(bays) * bay + bay / 2
    leaf = rng.uniform(0.2, 0.7, 3) * 160 * light
    block(door - 0.65, 0, door + 0.65, 2.35, trim * 0.8)
    block(door - 0.5, 0, door + 0.5, 2.2, leaf)
    if not tall:
        block(0, high - 0.45, wide, high, wall_tone * 0.8)
        block(0, high - 0.15, wide, high, trim * 0.85)
    return np.clip(stage.fog(picture, depth), 0, 255).astype(np.uint8)


def add_building(stage: Stage, side: int, z0: float, wide: float, setback: float, depth: float,
                 high: float, house: bool) -> None:
    """Put one building on a side of the street, its front ``setback`` metres off the axis."""
    rng = stage.rng
    x, z, turn = stage.place(side * setback, z0)
    along = np.array((np.sin(turn), 0, np.cos(turn)))
    outward = side * np.array((np.cos(turn), 0, -np.sin(turn)))
    foot = np.array((x, 0.0, z))
    corners = np.array([foot, foot + along * wide, foot + along * wide + outward * depth,
                        foot + outward * depth])
    seen = stage.to_camera(corners)
    limit = stage.width / 2 / stage.focal
    if (seen[:, 2] < 1).all() or (seen[:, 0] > limit * seen[:, 2] + 1).all() or (
            seen[:, 0] < -limit * seen[:, 2] - 1).all():
        return
    style = 'boards' if house and rng.random() < 0.5 else (
        'plaster' if house else str(rng.choice(list(_WALLS)[:4], p=(0.32, 0.34, 0.18, 0.16))))
    wall = np.array(stage.pick(_WALLS[style])) * rng.uniform(0.85, 1.1)
    roof = stage.pick(_ROOFS)
    storey, bay = (2.7, 2.6) if house else (rng.uniform(2.9, 3.6), rng.uniform(2.1, 3.3))
    shop = not house and rng.random() < 0.45
    look = dict(style=style, wall=tuple(wall), shop=shop, storey=storey, bay=bay)
    ridge = high + rng.uniform(1.8, 3.2) if house or (style in ('brick', 'plaster')
                                                      and rng.random() < 0.3) else None
    across = bool(rng.random() < 0.5)
    tall = corners + (0, high, 0)
    stage.cast(np.concatenate([corners, tall]))
    key = float(np.linalg.norm(seen[:2, [0, 2]], axis=1).max())

    def draw() -> None:
        _draw_building(stage, corners, along, outward, (wide, depth, high), look, roof, ridge,
                       across)
        if shop and outward @ (foot - (stage.camera_x, 0, 0)) > 0:
            _shop_sign(stage, foot - outward * 0.12, along, side, wide, storey, key)

    stage.acts.append((key, draw))


def _draw_building(stage: Stage, corners: np.ndarray, along: np.ndarray, outward: np.ndarray,
                   size: tuple, look: dict, roof: tuple, ridge: float | None,
                   across: bool) -> None:
    identity = stage.identity('building')
    wide, deep, high = size
    centre = corners.mean(0)
    eye = np.array((stage.camera_x, stage.camera_y, 0.0))
    walls = []
    for i in range(4):
        a, b = corners[i], corners[(i + 1) % 4]
        span = float(np.linalg.norm(b - a))
        right = (b - a) / span
        normal = np.array((right[2], 0, -right[0]))
        if normal @ ((a + b) / 2 - centre) < 0:
            normal = -normal
        if normal @ (eye - a) > 0:
            walls.append((i, a, right, span, normal))
    tops = corners + (0, high, 0)
    far = stage.to_camera(corners)[:, 2]
    depth = float(np.clip(far, 2, None).mean())
    if ridge is not None:
        _draw_roof(stage, tops, ridge - high, across, roof, depth, identity, eye, look)
    for i, start, right, span, normal in walls:
        # A texture runs left to right as seen from outside.
        if np.cross(right, (0, 1, 0)) @ normal > 0:
            start, right = start + right * span, -right
        nearest = max(2.0, float(np.clip(far[[i, (i + 1) % 4]], 0, None).min()))
        scale = float(np.clip(stage.focal / nearest, 3, 26))
        front = dict(look, shop=look['shop'] and i == 0)
        picture = facade(stage, wide=span, high=high, scale=scale, normal=normal, depth=depth,
                         **front)
        stage.textured(start, right, (span, high), picture, identity)


def _draw_roof(stage: Stage, tops: np.ndarray, rise: float, across: bool, roof: tuple,
               depth: float, identity: int, eye: np.ndarray, look: dict) -> None:
    # Ridge parallel to the street, or at right angles to it.
    a, b, c, d = tops if not across else tops[[1, 2, 3, 0]]
    lift = np.array((0, rise, 0))
    first, second = (a + d) / 2 + lift, (b + c) / 2 + lift
    for gable in ((a, d, first), (b, c, second)):
        stage.face(np.array(gable), stage.lit(look['wall'], depth, gain=0.9), identity)
    slopes = ((d, c, second, first), (a, b, second, first))
    middle = tops.mean(0)
    order = sorted(slopes, key=lambda q: -float(np.linalg.norm((q[0] + q[1]) / 2 - eye)))
    for p, q, r, t in order:
        normal = np.cross(q - p, t - p)
        normal = normal / np.linalg.norm(normal)
        if normal[1] < 0:
            normal = -normal
        if normal @ (eye - p) <= 0:
            continue
        eaves = ((p + q) / 2 - middle) * (1, 0, 1) * 0.08
        p, q = p + eaves - (0, 0.15, 0), q + eaves - (0, 0.15, 0)
        stage.face(np.array((p, q, r, t)), stage.lit(roof, depth, normal), identity)
        if depth < 60:
            for k in np.arange(0.1, 1, 0.14):
                band = np.array((p + (t - p) * k, q + (r - q) * k, q + (r - q) * (k + 0.05),
                                 p + (t - p) * (k + 0.05)))
                stage.face(band, stage.lit(roof, depth, normal, 0.88), identity)


def _shop_sign(stage: Stage, foot: np.ndarray, along: np.ndarray, side: int, wide: float,
               storey: float, depth: float) -> None:
    """A lettered board over the shop front (signboard) and perhaps an awning (building)."""
    rng = stage.rng
    start, length = wide * rng.uniform(0.05, 0.3), wide * rng.uniform(0.35, 0.6)
    base = foot + along * start
    # Seen from right below an awning is only stripes across the sky.
    if rng.random() < 0.55 and stage.spot(*(base + along * length / 2))[2] > 6:
        out = np.array((along[2], 0, -along[0])) * -side * 1.2
        colours = (stage.pick(_AWNINGS), (232, 226, 214))
        pieces = max(3, int(length / 0.6))
        for k in range(pieces):
            p, q = base + along * length * k / pieces, base + along * length * (k + 1) / pieces
            high, low = np.array((0, storey * 0.8, 0)), np.array((0, storey * 0.62, 0))
            stage.face(np.array((p + high, q + high, q + out + low, p + out + low)),
                       stage.lit(colours[k % 2], depth), stage.identity('building'))
    board = np.empty((20, max(24, int(length * 20)), 3), np.uint8)
    ground = rng.uniform(30, 220, 3)
    board[:] = np.clip(ground * stage.light() + 20, 0, 255)
    ink = (250, 246, 230) if ground.mean() < 130 else (40, 34, 40)
    x = 8
    while x < board.shape[1] - 14:
        letter = int(rng.integers(5, 11))
        cv2.rectangle(board, (x, 5), (x + letter - 3, 14), ink, -1)
        if rng.random() < 0.6:
            cv2.rectangle(board, (x + 2, 8), (x + letter - 5, 11), tuple(board[0, 0].tolist()), -1)
        x += letter + (5 if rng.random() < 0.15 else 0)
    origin = base + (0, storey * 0.83, 0)
    right = along
    if side > 0:
        origin, right = origin + along * length, -along
    stage.textured(origin, right, (length, storey * 0.24), board, stage.identity('signboard'))
