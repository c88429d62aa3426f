"""Weather and hours: the light that a scene is painted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Colour = Sequence[float]


@dataclass(frozen=True)
class Mood:
    """Weather and hour. Colours are RGB 0..255, ambient and sun multiply an albedo."""

    sky_top: Colour
    sky_low: Colour
    cloud: Colour
    ambient: Colour
    sun: Colour
    haze_metres: float
    cloudiness: float
    lit_windows: float
    elevation: tuple[float, float]


MOODS = {
    'noon': Mood((70, 128, 205), (186, 214, 236), (255, 255, 255), (0.50, 0.54, 0.62),
                 (0.62, 0.58, 0.50), 260, 0.45, 0.02, (0.7, 1.1)),
    'morning': Mood((112, 158, 212), (244, 226, 202), (255, 246, 234), (0.50, 0.50, 0.56),
                    (0.66, 0.55, 0.40), 150, 0.4, 0.08, (0.35, 0.6)),
    'overcast': Mood((168, 178, 190), (212, 216, 218), (232, 234, 236), (0.86, 0.88, 0.91),
                     (0.12, 0.12, 0.12), 130, 0.75, 0.10, (0.7, 1.0)),
    'dusk': Mood((72, 86, 142), (255, 176, 112), (255, 152, 118), (0.52, 0.47, 0.52),
                 (0.80, 0.50, 0.26), 170, 0.5, 0.35, (0.2, 0.35)),
    'blue hour': Mood((44, 62, 124), (186, 150, 168), (128, 116, 156), (0.52, 0.56, 0.74),
                      (0.10, 0.08, 0.08), 180, 0.4, 0.6, (0.2, 0.4)),
}
