"""Which layers differ between two sets of weights of one model."""
from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from visattn_dense.backbones import DenseBackbone
from visattn_dense.errors import UserError

from .rows import find_attentions

PARTS = ('attention', 'norms', 'the rest')


@dataclass(frozen=True)
class Change:
    """How far one parameter differs.

    Attributes:
        name: of the parameter.
        depth: of its layer, from the stem at 0; see `DenseBackbone.layer_depths`.
        part: 'attention', 'norms' or 'the rest' (MLPs and convolutions).
        difference, size: the norms of after − before and of before.
    """

    name: str
    depth: int
    part: str
    difference: float
    size: float

    @property
    def relative(self) -> float:
        """‖after − before‖ / ‖before‖; infinite if only `before` is zero."""
        return _ratio(self.difference, self.size)


def weight_changes(before: DenseBackbone, after: DenseBackbone) -> list[Change]:
    """How far each parameter of a backbone differs between two sets of weights.

    Args:
        before, after: two backbones of the same class and arch.

    Raises:
        UserError: their parameters have other names or shapes.
    """
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    if {n: p.shape for n, p in old.items()} != {n: p.shape for n, p in new.items()}:
        raise UserError('the two models differ in the names or shapes of their parameters: compare '
                        'two checkpoints of one config')
    depths = before.layer_depths()
    inside = {id(p) for attention in find_attentions(before).values()
              for p in attention.parameters()}
    norms = {id(p) for module in before.modules()
             if isinstance(module, (nn.LayerNorm, _BatchNorm)) for p in module.parameters()}
    changes = []
    with torch.no_grad():
        for name, was in old.items():
            part = PARTS[1] if id(was) in norms else PARTS[0] if id(was) in inside else PARTS[2]
            gap = (new[name].double().cpu() - was.double().cpu()).norm()
            changes.append(Change(name, depths[name], part, float(gap),
                                  float(was.double().norm())))
    return changes


def by_depth(changes: Sequence[Change]) -> tuple[list[str], dict[str, list[float]]]:
    """Changes summed over the parameters of one part at one depth, for `draw_changes`.

    Returns:
        The name of each depth; part -> its relative difference at each depth, NaN for no such part.
    """
    sums: dict[tuple[int, str], list[float]] = defaultdict(lambda: [0., 0.])
    for change in changes:
        entry = sums[change.depth, change.part]
        entry[0] += change.difference ** 2
        entry[1] += change.size ** 2
    last = max(change.depth for change in changes)
    names = ['stem', *(f'block {depth}' for depth in range(1, last)), 'outputs'][:last + 1]
    return names, {part: [_ratio(*(value ** .5 for value in sums[depth, part]))
                          if (depth, part) in sums else float('nan') for depth in range(last + 1)]
                   for part in PARTS}


def _ratio(difference: float, size: float) -> float:
    return difference / size if size else 0. if difference == 0 else float('inf')
