"""What stands where along the street: lots, street furniture, traffic and people."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import bicycles, buildings, furniture, nature, people, vehicles
from .ground import Side, Street, paint_ridge
from .stage import Stage

SEASONS = {
    'summer': dict(leaves=((74, 118, 50), (94, 134, 58), (56, 100, 52)), grass=(104, 142, 62),
                   soil=(150, 118, 84), bloom=((226, 70, 96), (246, 214, 90), (236, 236, 240))),
    'spring': dict(leaves=((128, 162, 74), (234, 172, 190), (108, 150, 66)), grass=(124, 166, 72),
                   soil=(142, 108, 78), bloom=((246, 220, 90), (208, 130, 206), (250, 240, 240))),
    'autumn': dict(leaves=((206, 128, 44), (182, 78, 42), (214, 172, 60), (110, 118, 56)),
                   grass=(136, 138, 70), soil=(132, 100, 72), bloom=((196, 80, 60),)),
    'dry': dict(leaves=((104, 116, 62), (126, 130, 70)), grass=(168, 154, 92),
                soil=(186, 152, 110), bloom=((240, 120, 150), (250, 250, 240))),
}


@dataclass(frozen=True)
class Plan:
    """How built up, planted and busy the street is; numbers are probabilities per place."""

    built: float
    house: bool
    trees: float
    traffic: float
    people: float


PLANS = {
    'city': (0.30, Plan(0.95, False, 0.35, 0.65, 0.8)),
    'suburb': (0.30, Plan(0.75, True, 0.55, 0.50, 0.5)),
    'park': (0.20, Plan(0.25, False, 0.85, 0.40, 0.6)),
    'country': (0.20, Plan(0.15, True, 0.60, 0.40, 0.25)),
}


def draw_season(rng: np.random.Generator, paved: bool) -> dict:
    """Draw the colours of leaves and ground (albedo, 0..255) and the size of a paving stone."""
    season = dict(SEASONS[str(rng.choice(list(SEASONS), p=(0.4, 0.22, 0.24, 0.14)))])
    tone = rng.uniform(0.85, 1.1)
    season |= dict(asphalt=np.array((122, 122, 126)) * tone, tile=float(rng.uniform(0.6, 1.5)),
                   stone=np.array(((186, 178, 168), (170, 172, 174), (196, 176, 152))[
                       rng.integers(3)]) * rng.uniform(0.88, 1.05))
    if not paved:
        season['asphalt'] = np.array((158, 140, 116)) * tone
    return season


def lay_street(rng: np.random.Generator, name: str) -> Street:
    """Draw the cross-section of a street for a plan of ``PLANS``."""
    paved = name != 'country' or rng.random() < 0.6
    walks = {'city': 1.0, 'suburb': 0.85, 'park': 0.7, 'country': 0.1}[name]
    beyond = {'city': ('sidewalk', 'grass', 'earth'), 'suburb': ('grass', 'earth'),
              'park': ('grass', 'earth'), 'country': ('grass', 'earth')}[name]
    odds = (0.6, 0.25, 0.15) if len(beyond) == 3 else (0.68, 0.32)
    verge_odds = {'city': 0.15, 'suburb': 0.6, 'park': 0.6, 'country': 1.0}[name]
    sides = []
    for _ in range(2):
        sidewalk = rng.uniform(1.8, 4.0) if rng.random() < walks else 0.0
        verge = rng.uniform(1.0, 2.6) if rng.random() < verge_odds else 0.0
        sides.append(Side(verge, sidewalk, str(rng.choice(beyond, p=odds))))
    crossing = float(rng.uniform(14, 36)) if rng.random() < 0.45 else None
    half = rng.uniform(5.2, 6.8) if name == 'city' and rng.random() < 0.45 else (
        rng.uniform(2.8, 4.2))
    return Street(
        half_width=float(half), left=sides[0], right=sides[1],
        verge_kind=str(rng.choice(('grass', 'earth'), p=(0.65, 0.35))), paved=paved,
        markings=str(rng.choice(('dashed', 'double', 'none'), p=(0.5, 0.25, 0.25))),
        crossing=crossing, crossing_half=float(rng.uniform(2.6, 4.0)),
        crosswalk=bool(paved and rng.random() < (0.6 if crossing else 0.25)),
    )


def _free(street: Street, z: float, margin: float = 1.0) -> bool:
    """Whether a spot beside the road keeps clear of the crossing street."""
    return street.crossing is None or abs(z - street.crossing) > street.crossing_half + margin


def build_side(stage: Stage, street: Street, plan: Plan, side: int, season: dict) -> None:
    """Fill one side with lots: a building, or a garden with a fence, bushes and trees."""
    rng, edge = stage.rng, street.edge(side)
    z = -36.0 + rng.uniform(0, 8)
    fence = str(rng.choice(('planks', 'pickets', 'rails')))
    fenced = rng.random() < (0.65 if plan.house else 0.35)
    gap = 0.0 if not plan.house else 3.5
    shapes = rng.choice(('round', 'spreading', 'poplar', 'conifer'), 2, p=(0.42, 0.28, 0.13, 0.17))
    while z < 105:
        wide = rng.uniform(8, 13) if plan.house else rng.uniform(9, 22)
        clear = street.crossing is None or (
            z > street.crossing + street.crossing_half + 2.5
            or z + wide < street.crossing - street.crossing_half - 2.5)
        if not clear:
            z += 3.0
            continue
        setback = edge + (rng.uniform(3.5, 7.5) if plan.house else rng.uniform(0.1, 0.8))
        built = rng.random() < plan.built
        if built:
            high = rng.uniform(3.0, 6.2) if plan.house else rng.uniform(5.5, 19)
            buildings.add_building(stage, side, z, wide, setback, rng.uniform(7, 12), high,
                                   plan.house)
        elif not plan.house and rng.random() < 0.5:
            setback += 12
        garden = plan.house or not built
        if garden and fenced:
            furniture.add_fence(stage, side, edge + 0.35, z, z + wide, fence)
        if garden:
            for _ in range(rng.poisson(0.9 if built else 2.0 * plan.trees)):
                leaf = stage.pick(season['leaves'])
                deep = edge + (rng.uniform(1.5, 3.0) if built else rng.uniform(1.5, 14))
                nature.add_tree(stage, side * deep, z + rng.uniform(0, wide),
                                rng.uniform(3.5, 10), str(rng.choice(shapes)), leaf)
            for _ in range(rng.poisson(1.1)):
                leaf = np.array(season['leaves'][0]) * rng.uniform(0.8, 1.0)
                bloom = stage.pick(season['bloom'])
                nature.add_bush(stage, side * (edge + rng.uniform(0.9, 2.6)),
                                z + rng.uniform(0, wide), rng.uniform(0.9, 2.4),
                                rng.uniform(0.7, 1.5), tuple(leaf),
                                bloom if rng.random() < 0.5 else None)
        z += wide + (gap * rng.uniform(0.5, 1.5) if built else rng.uniform(0, 3))


def furnish_side(stage: Stage, street: Street, plan: Plan, side: int, season: dict) -> None:
    """Kerb line: lights or wooden poles, street trees, signs, bins."""
    rng, half = stage.rng, street.half_width
    config = street.side(side)
    kerb = half + (0.6 if config.reach > 1 else 1.2)
    urban = config.sidewalk > 0
    style, spacing = rng.random(), rng.uniform(16, 26)
    leaf = stage.pick(season['leaves'])
    shape = str(rng.choice(('round', 'spreading', 'poplar'), p=(0.6, 0.25, 0.15)))
    tree_high = rng.uniform(5, 8.5)
    planted = rng.random() < plan.trees * 0.8
    for z in np.arange(-30 + rng.uniform(0, spacing), 100, spacing):
        if not _free(street, z):
            continue
        if style < (0.62 if urban else 0.30):
            furniture.add_streetlight(stage, side * kerb, z, 6.5, -side * 1.8)
        elif style < (0.80 if urban else 0.85):
            furniture.add_pole(stage, side * kerb, z, 7.5)
        if planted:
            for step in (0.33, 0.68):
                at = z + spacing * step
                if _free(street, at, 2):
                    nature.add_tree(stage, side * (kerb + 0.2), at, tree_high * rng.uniform(
                        0.85, 1.15), shape, leaf)
    for z in rng.uniform(4, 45, rng.poisson(1.3 if urban else 0.9)):
        design = str(rng.choice(('stop', 'speed', 'yield', 'blue', 'board'),
                                p=(0.30, 0.2, 0.14, 0.18, 0.18)))
        if _free(street, z):
            furniture.add_sign(stage, side * (kerb + 0.1), z, design)
    for z in rng.uniform(3, 30, rng.poisson(0.5 if urban else 0.15)):
        furniture.add_bin(stage, side * (kerb + config.sidewalk * 0.7), z)


def add_traffic(stage: Stage, street: Street, plan: Plan) -> None:
    """Moving and parked vehicles, cyclists; nothing overlaps within a lane."""
    rng, half = stage.rng, street.half_width
    names = ('sedan', 'hatch', 'suv', 'van', 'bus', 'lorry')
    odds = np.array((0.28, 0.24, 0.18, 0.08, 0.10, 0.12))
    wide_road = half > 5
    lanes = [(-half * 0.27, True), (half * 0.27, False)] if wide_road else [
        (-half * 0.5, True), (half * 0.5, False)]
    if wide_road:
        lanes += [(-half * 0.73, True), (half * 0.73, False)]
    across = abs(stage.yaw) > 1.0
    for s, oncoming in lanes:
        z = (-22 if across else 4) + rng.exponential(9)
        while z < 75:
            if rng.random() < plan.traffic:
                name = str(rng.choice(names, p=odds))
                room = {'bus': 12.5, 'lorry': 9.0}.get(name, 6.0)
                paint = stage.pick(vehicles.PAINTS)
                vehicles.add_motor(stage, name, s + rng.normal(0, 0.12), z + room / 2, oncoming,
                                   tuple(np.array(paint) * rng.uniform(0.85, 1.1)))
                z += room
            z += 1.5 + rng.exponential(11)
    for side in (-1, 1):
        config = street.side(side)
        kerbside = config.sidewalk > 0 and (wide_road or rng.random() < 0.45)
        if not kerbside or wide_road or rng.random() > plan.traffic + 0.2:
            continue
        for z in np.arange(-28, 60, 5.8):
            if rng.random() < 0.45 and _free(street, z, 4):
                paint = stage.pick(vehicles.PAINTS)
                vehicles.add_motor(stage, str(rng.choice(names[:4])),
                                   side * (half + 0.35), z, side < 0, paint)
    for _ in range(rng.poisson(1.5 * (0.5 + plan.people))):
        side = rng.choice((-1, 1))
        z = rng.uniform(-6, 8) if across else 5.5 + rng.exponential(7)
        bicycles.add_bicycle(stage, side * (half - rng.uniform(0.25, 0.45)), z, True,
                           (np.pi if side < 0 else 0.0) + rng.normal(0, 0.3))
    for _ in range(rng.poisson(1.2 * (0.3 + plan.people))):
        side = rng.choice((-1, 1))
        bicycles.add_bicycle(stage, side * (street.edge(side) - 0.3), rng.uniform(-5, 14), False,
                           rng.uniform(-0.5, 0.5))


def add_people(stage: Stage, street: Street, plan: Plan) -> None:
    """Pedestrians on both sides, some crossing, now and then a crowd."""
    rng, half = stage.rng, street.half_width
    across = abs(stage.yaw) > 1.0
    for side in (-1, 1):
        config = street.side(side)
        for _ in range(rng.poisson(7.5 * plan.people)):
            s = half + config.verge + rng.uniform(0.5, max(config.sidewalk, 1.6))
            z = rng.uniform(-9, 10) if across else 4.5 + rng.exponential(9)
            people.add_person(stage, side * s, z, rng.random() < 0.18)
    if rng.random() < 0.3 * plan.people + 0.1:
        middle = (street.crossing or 14.0) - street.crossing_half - 2.2
        for _ in range(rng.integers(1, 4)):
            people.add_person(stage, rng.uniform(-half, half), middle + rng.normal(0, 0.5))
    if rng.random() < 0.28 * plan.people + 0.04:
        side = rng.choice((-1, 1))
        z = rng.uniform(-5, 8) if across else rng.uniform(13, 26)
        people.add_crowd(stage, side * (street.edge(side) - 1.0), z, int(rng.integers(7, 13)))


def add_signals(stage: Stage, street: Street) -> None:
    """Put traffic lights where another street crosses, most of the time."""
    rng = stage.rng
    if street.crossing is None or rng.random() > 0.85:
        return
    z = street.crossing - street.crossing_half - 1.2
    lamp = int(rng.integers(3))
    for side in (-1, 1):
        furniture.add_signal(stage, side * (street.half_width + 0.5), z, lamp)


def backdrop(stage: Stage, name: str, season: dict) -> None:
    """Paint what closes the view: mountains, a skyline, woods."""
    rng = stage.rng
    if rng.random() < {'city': 0.2, 'suburb': 0.5, 'park': 0.6, 'country': 0.9}[name]:
        tone = stage.pick(((96, 116, 132), (112, 110, 124), (92, 118, 96)))
        paint_ridge(stage, 'mountain', tone, 240, rng.uniform(0.14, 0.34), 4)
        if rng.random() < 0.5:
            paint_ridge(stage, 'mountain', tuple(np.array(tone) * 0.85), 150,
                        rng.uniform(0.05, 0.11), 4)
    if name in ('city', 'park') and rng.random() < 0.7:
        paint_ridge(stage, 'building', (150, 146, 148), 130, rng.uniform(0.08, 0.22), 0)
    if name != 'city' or rng.random() < 0.3:
        leaf = np.array(season['leaves'][-1]) * 0.9
        paint_ridge(stage, 'tree', tuple(leaf), 90, rng.uniform(0.035, 0.09), 6)
