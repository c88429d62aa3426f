"""What a model looks at from one point of an image: arrays and a figure.

    found = explain(model, image, point=(120, 80))
    found.looks[2].mean           # (H, W), sums to 1 with found.looks[2].elsewhere
    found.figure().savefig('attention.png')

`rollout` follows the tokens of T2T-ViT through all blocks (attention rollout, arXiv 2005.00928):
each block passes on half of a token and half of what its attention weighs, so the row of a token is

    r = e · (½ I + ½ A_n) … (½ I + ½ A_1),   A_i the mean over the heads of block i

The product is taken from the left, a few queries of A_i at a time.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from visattn_dense.attention import SelfAttention
from visattn_dense.errors import UserError
from visattn_dense.ops.group_attention import reference as softmax

from . import figures
from .looks import Look, Stage
from .rows import Rows, attention_rows, find_attentions, map_size
from .watching import (
    backbone_of,
    before_forward,
    checked_point,
    one_image,
    position_of,
    stages_of,
    token_box,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Weights of `rollout` in memory at a time.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Explanation:
    """What a model looks at from one point.

    Attributes:
        picture: (H, W, 3) uint8 RGB, the image.
        point: (x, y) in pixels of the image.
        looks: one for each attention that was asked, in the order of the model.
    """

    picture: np.ndarray
    point: tuple[float, float]
    looks: tuple[Look, ...]

    def figure(self) -> Figure:
        """The means and some heads of all looks, laid over the picture; see `draw_looks`."""
        return figures.draw_looks(self.picture, self.point, self.looks)

    def arrays(self) -> dict[str, np.ndarray]:
        """For `numpy.savez`: of each attention NAME its weights (h, H, W), and NAME/elsewhere/WHAT
        (h,). With routing also NAME/routing and NAME/routing_weight, (R, K)."""
        found = {'point': np.array(self.point)}
        for look in self.looks:
            found[look.name] = look.heads.numpy()
            for what, weight in look.rows.elsewhere.items():
                found[f'{look.name}/elsewhere/{what}'] = weight[0].numpy()
            if look.rows.routing is not None:
                found[f'{look.name}/routing'] = look.rows.routing.index.numpy()
                found[f'{look.name}/routing_weight'] = look.rows.routing.weight.numpy()
        return found


def explain(model: nn.Module, image: Tensor, point: tuple[float, float] | None = None, *,
            stage: Stage = None, picture: np.ndarray | None = None) -> Explanation:
    """What the attentions of a model look at from one point of an image.

    The model runs once. Its output, its parameters and its later memory do not change. Besides the
    forward of the model, memory is needed for q, k and v of one attention at a time.

    Args:
        model: a backbone, or a model that contains one (a segmentor, a detector, a model of timm),
            in evaluation mode. Or any model with attentions of `known_attentions`.
        image: (3, H, W) or (1, 3, H, W), normalised as the model expects it.
        point: (x, y) in pixels of the image, the middle for None.
        stage: show all attentions of this stage: 0 to 3 or 'stem'. None: the last attention of each
            stage, and those of the stem.
        picture: (H, W, 3) uint8 RGB, for the figure. None: the image, scaled to 0…255.

    Raises:
        UserError: no attention to show, a stage without attention, a model in training mode, a
            point outside the image, more than one image.
    """
    backbone = backbone_of(model)
    image = one_image(backbone, image)
    point = checked_point(point, image)
    chosen = choose(backbone, stage)
    looks: dict[str, Look] = {}
    stages = stages_of(backbone)

    def hook(name: str, attention: nn.Module):
        def look(x: Tensor, size: tuple[int, int] | None) -> None:
            size = map_size(attention, x, size)
            position = position_of(point, image, size)
            looks[name] = Look(name, type(attention).__name__, stages.get(id(attention)), position,
                               token_box(backbone, position, image, size),
                               _on_cpu(attention_rows(attention, x, [position], size=size)))
        return look

    with before_forward({each: hook(name, each) for name, each in chosen.items()}, backbone):
        backbone(image)
    return Explanation(picture_of(image) if picture is None else picture, point,
                       tuple(looks[name] for name in chosen if name in looks))


def choose(backbone: nn.Module, stage: Stage) -> Mapping[str, nn.Module]:
    """The attentions of `stage` by name; for None the last of each stage.

    Raises:
        UserError: there is no such stage, or it has no attention.
    """
    found, stages = find_attentions(backbone), stages_of(backbone)
    if not stages:
        if stage is not None:
            raise UserError(f'{type(backbone).__name__} does not say what its stages are: '
                            'leave the stage out')
        return found
    by_stage: dict[Stage, dict[str, nn.Module]] = {}
    for name, attention in found.items():
        by_stage.setdefault(stages.get(id(attention)), {})[name] = attention
    if stage is None:
        # The attentions of T2T's stem are at different strides.
        return {name: attention for key, group in by_stage.items()
                for name, attention in list(group.items())[0 if key == 'stem' else -1:]}
    if stage not in by_stage:
        raise UserError(f'stage {stage} of {type(backbone).__name__} has no attention; these have: '
                        f'{", ".join(map(str, by_stage))}')
    return by_stage[stage]


def rollout(model: nn.Module, image: Tensor, point: tuple[float, float] | None = None) -> Look:
    """Where the token at a point comes from, through all attentions over one list of tokens.

    The time grows with the square of the number of tokens, as that of the model; the memory does
    not.

    Args:
        model, image, point: see `explain`; a T2T-ViT.

    Returns:
        A look with one head. Its weights sum to 1 with those of the class token.

    Raises:
        UserError: see `explain`; or the model has no attention over a list of tokens.
    """
    backbone = backbone_of(model)
    image = one_image(backbone, image)
    point = checked_point(point, image)
    blocks: list[tuple[SelfAttention, Tensor]] = []
    sizes: list[tuple[int, int]] = []
    hooks = {}
    for attention in find_attentions(backbone).values():
        if isinstance(attention, SelfAttention):
            def keep(x: Tensor, size: tuple[int, int] | None, attention=attention) -> None:
                if x.ndim == 3 and size is not None:
                    blocks.append((attention, x))
                    sizes.append(size)
            hooks[attention] = keep
    with before_forward(hooks, backbone):
        backbone(image)
    if not blocks:
        raise UserError(f'{type(backbone).__name__} has no list of tokens: rollout is for T2T-ViT')
    size = sizes[-1]
    position = position_of(point, image, size)
    tokens = blocks[-1][1].shape[1]
    before = tokens - size[0] * size[1]
    row = torch.zeros(tokens, device=image.device)
    row[before + position[0] * size[1] + position[1]] = 1
    with torch.no_grad():
        for attention, x in reversed(blocks):
            row = (row + _weighed(row, attention, x)) / 2
    row = row.cpu()
    rows = Rows(row[before:].view(1, 1, *size), {'other tokens': row[None, None, :before].sum(-1)},
                torch.empty(1, 1, 0), ('',))
    return Look(f'rollout of {len(blocks)} blocks', 'rollout', None, position,
                token_box(backbone, position, image, size), rows)


def _weighed(row: Tensor, attention: SelfAttention, x: Tensor) -> Tensor:
    """row · A, A (N, N) the mean over the heads of the attention on `x` (1, N, C)."""
    q, k, _ = attention.qkv(x)[0].float().chunk(3, dim=-1)
    q, k = (t.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1) for t in (q, k))
    asked = row.nonzero()[:, 0]
    out = torch.zeros_like(row)
    for some in asked.split(max(1, _AT_ONCE // (attention.num_heads * len(row)))):
        weights = softmax.attention_weights(q[:, some], k, attention.scale)
        out += row[some] @ weights.mean(0)
    return out


def picture_of(image: Tensor) -> np.ndarray:
    """(1, C, H, W) to (H, W, 3) uint8: the first three channels, or the first, scaled to 0…255."""
    shown = image[0, :3] if image.shape[1] >= 3 else image[0, :1].expand(3, -1, -1)
    low, high = shown.min(), shown.max()
    scaled = 255 * (shown - low) / (high - low).clamp(min=1e-12)
    return scaled.permute(1, 2, 0).round().to(torch.uint8).cpu().numpy()


def _on_cpu(rows: Rows) -> Rows:
    routing = rows.routing and replace(rows.routing, index=rows.routing.index.cpu(),
                                       weight=rows.routing.weight.cpu())
    return Rows(rows.weights.cpu(), {name: part.cpu() for name, part in rows.elsewhere.items()},
                rows.output.cpu(), rows.groups, routing)
