"""One forward of a model with hooks that are gone afterwards."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.attention import TokensToToken
from visattn_dense.backbones import DenseBackbone
from visattn_dense.errors import UserError

from .looks import Box, Stage
from .rows import Position, find_attentions

# T2T-ViT's splits (7×7 stride 4 padding 2, then twice 3×3 stride 2 padding 1): for the stride of a
# token the first of its pixels, counted from stride · index, and how many there are.
_TOKEN_PIXELS = {4: (-2, 7), 8: (-6, 15), 16: (-14, 31)}


def backbone_of(model: nn.Module) -> nn.Module:
    """The backbone of this project inside `model`, else `model` itself.

    Raises:
        UserError: the model has no attention of `known_attentions`, or is in training mode.
    """
    found = next((module for module in model.modules() if isinstance(module, DenseBackbone)), model)
    if not find_attentions(found):
        raise UserError(f'{type(found).__name__} has no attention that can be shown; '
                        'visattn_dense.explain.attention_rows says which can')
    if found.training:
        raise UserError('the model is in training mode, where a forward changes its statistics: '
                        'call model.eval() first')
    return found


def one_image(model: nn.Module, image: Tensor) -> Tensor:
    """`image` (C, H, W) or (1, C, H, W) as a batch of one, as the parameters of `model` are.

    Raises:
        UserError: another shape.
    """
    image = image[None] if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1:
        raise UserError(f'one image (C, H, W) is explained at a time, got {tuple(image.shape)}')
    like = next((p for p in model.parameters() if p.is_floating_point()), image)
    return image.detach().to(like.device, like.dtype)


def checked_point(point: tuple[float, float] | None, image: Tensor) -> tuple[float, float]:
    """(x, y) in pixels of `image` (..., H, W); the middle for None.

    Raises:
        UserError: the point is outside the image.
    """
    height, width = image.shape[-2:]
    if point is None:
        return (width - 1) / 2, (height - 1) / 2
    x, y = point
    if not (0 <= x < width and 0 <= y < height):
        raise UserError(f'the point {x:g},{y:g} (x, y) is outside the image of {width}x{height}')
    return float(x), float(y)


def position_of(point: tuple[float, float], image: Tensor, size: tuple[int, int]) -> Position:
    """The position of a map of `size` (H, W) that the pixel `point` (x, y) lies in."""
    (x, y), (height, width) = point, image.shape[-2:]
    return (min(int((y + .5) * size[0] / height), size[0] - 1),
            min(int((x + .5) * size[1] / width), size[1] - 1))


def token_box(backbone: nn.Module, position: Position, image: Tensor,
              size: tuple[int, int]) -> Box:
    """The pixels that the token at `position` is made from: its cell, or T2T's overlapping patch.
    """
    splits = any(isinstance(module, TokensToToken) for module in backbone.modules())
    spans = []
    for index, cells, side in zip(position[::-1], size[::-1], image.shape[:-3:-1], strict=True):
        stride = 2 ** round(math.log2(max(1, side / cells)))
        if splits and stride in _TOKEN_PIXELS:
            first, count = _TOKEN_PIXELS[stride]
            spans.append((stride * index + first, stride * index + first + count))
        else:
            spans.append((index * side / cells, (index + 1) * side / cells))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def stages_of(backbone: nn.Module) -> dict[int, Stage]:
    """id of a module -> its stage, for the modules of a `DenseBackbone`; else empty."""
    if not isinstance(backbone, DenseBackbone):
        return {}
    return {id(inner): number - 1 if number else 'stem'
            for number, group in enumerate(backbone.stage_modules())
            for module in group for inner in module.modules()}


@contextmanager
def before_forward(hooks: Mapping[nn.Module, Callable[[Tensor, tuple[int, int] | None], Any]],
                   backbone: nn.Module) -> Iterator[None]:
    """While the block runs, call `hook(x, size)` before the forward of each module of `hooks`.

    `x` is the module's input. `size` is (H, W) of T2T's tokens, else None.
    """
    size: dict[str, tuple[int, int]] = {}
    handles = []

    def call(hook: Callable, inputs: tuple[Tensor, ...]) -> None:
        hook(inputs[0], size.get('tokens'))
    try:
        for module in backbone.modules():
            if isinstance(module, TokensToToken):
                handles.append(module.register_forward_hook(
                    lambda _module, _inputs, maps: size.update(tokens=tuple(maps[-1].shape[1:3]))))
        for module, hook in hooks.items():
            handles.append(module.register_forward_pre_hook(
                lambda _module, inputs, hook=hook: call(hook, inputs)))
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
