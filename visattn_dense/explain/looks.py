"""A look: what one attention of a model weighs from one point of an image."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .rows import Position, Rows

Stage = int | str | None
"""0 to 3, as in `out_indices`; 'stem'; None if the model does not say what its stages are."""
Box = tuple[float, float, float, float]
"""(left, top, right, bottom) in pixels of the image."""


@dataclass(frozen=True)
class Look:
    """What one attention weighs from the point.

    Attributes:
        name: of the attention in the backbone.
        kind: what computes the weights: the name of its class, or 'rollout'.
        stage: the stage that the attention belongs to.
        position: (row, column) of the query on the map of the attention.
        token: the pixels that the query's token is made from, without attention. The box may reach
            beyond the image.
        rows: the row of this query; see `Rows`, here Q is 1.
    """

    name: str
    kind: str
    stage: Stage
    position: Position
    token: Box
    rows: Rows

    @property
    def heads(self) -> Tensor:
        """(h, H, W), the weights of each head on the map."""
        return self.rows.weights[0]

    @property
    def mean(self) -> Tensor:
        """(H, W), the mean over the heads."""
        return self.heads.mean(0)

    @property
    def elsewhere(self) -> dict[str, float]:
        """The weights that are not on the map, by name, each the mean over the heads."""
        return {name: float(part.mean()) for name, part in self.rows.elsewhere.items()}

    def group_means(self) -> dict[str, Tensor]:
        """For each group of heads the mean of its heads (H, W); empty if there is one group."""
        groups = dict.fromkeys(self.rows.groups)
        if len(groups) < 2:
            return {}
        return {group: self.heads[[g == group for g in self.rows.groups]].mean(0)
                for group in groups}


def half_area(weights: Tensor) -> float:
    """The smallest part of a map, from 0 to 1, that holds half of the weight on the map.

    Args:
        weights: (H, W). NaN is returned if all are zero.
    """
    ordered = weights.flatten().double().sort(descending=True).values.cumsum(0)
    if ordered[-1] <= 0:
        return float('nan')
    return (int((ordered < ordered[-1] / 2).sum()) + 1) / len(ordered)


def percent(part: float) -> str:
    """A part from 0 to 1 for a reader, two digits long: '0.033 %', '12 %'."""
    return f'{100 * part:.0f} %' if part >= .095 else f'{100 * part:.2g} %'
