"""What a stage sees and what it holds: its effective receptive field, its features as colours."""
from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from visattn_dense.errors import UserError
from visattn_dense.layers.packed import Packed

from .watching import backbone_of, checked_point, one_image, position_of


def receptive_fields(model: nn.Module, image: Tensor, point: tuple[float, float] | None = None, *,
                     draws: int = 4) -> dict[int, Tensor]:
    """The effective receptive field of the maps at a point: how much each pixel moves them.

        field(p)² = Σ_c ‖∂ f_c / ∂ image(p)‖²,  f_c channel c of the map at the point

    The sum over all channels is estimated by `draws` gradients of Σ_c ±f_c with random signs. (A
    plain sum over channels has no gradient after a LayerNorm.) Source: arXiv 1701.04128.

    A gradient needs the activations of the whole model, as a training step on one image does.

    Args:
        model: see `explain`.
        image: (3, H, W) or (1, 3, H, W).
        point: (x, y) in pixels of the image, the middle for None.
        draws: random signs for each map.

    Returns:
        stage -> (H, W), on the CPU, for each map that the backbone returns.

    Raises:
        UserError: see `explain`; or the model has packed weights, which have no gradient.
    """
    backbone = backbone_of(model)
    image = one_image(backbone, image)
    point = checked_point(point, image)
    generator = torch.Generator().manual_seed(0)
    fields = {}
    # torch would give the gradient of the other layers alone.
    if any(isinstance(module, Packed) for module in backbone.modules()):
        raise UserError(f'{type(backbone).__name__} has packed weights, which have no gradient: '
                        'take the model before optimize_for_inference')
    with torch.inference_mode(False), torch.enable_grad():
        image = image.clone().requires_grad_()
        maps = backbone(image)
        stages = getattr(backbone, 'out_indices', range(len(maps)))
        for number, (stage, each) in enumerate(zip(stages, maps, strict=True)):
            row, column = position_of(point, image, each.shape[2:])
            here = each[0, :, row, column]
            total = torch.zeros(image.shape[2:], device=image.device)
            for draw in range(draws):
                signs = 2. * torch.randint(2, here.shape, generator=generator) - 1
                last = number == len(maps) - 1 and draw == draws - 1
                gradient, = torch.autograd.grad(here @ signs.to(here), image,
                                                retain_graph=not last)
                total += gradient[0].float().square().sum(0)
            fields[stage] = (total / draws).sqrt().cpu()
    return fields


def feature_colours(model: nn.Module, image: Tensor) -> dict[int, np.ndarray]:
    """The maps of a model as colours: positions with the same colour have like features.

    The three main components of the positions of each map become red, green and blue. Colours of
    two maps cannot be compared.

    Args:
        model, image: see `explain`.

    Returns:
        stage -> (h, w, 3) uint8, at the size of the map.

    Raises:
        UserError: see `explain`.
    """
    backbone = backbone_of(model)
    with torch.no_grad():
        maps = backbone(one_image(backbone, image))
    stages = getattr(backbone, 'out_indices', range(len(maps)))
    return {stage: principal_colours(each[0]) for stage, each in zip(stages, maps, strict=True)}


def principal_colours(feature: Tensor) -> np.ndarray:
    """(C, h, w) to (h, w, 3) uint8: the three main components over the positions.

    Each component is scaled by its 1st and 99th percentile. Its sign, which is free, is the one
    that gives its largest loading a plus.
    """
    points = feature.flatten(1).double().cpu()
    points = points - points.mean(1, keepdim=True)
    _, vectors = torch.linalg.eigh(points @ points.mT)
    main = vectors[:, -3:].flip(1)
    largest = main.gather(0, main.abs().argmax(0, keepdim=True))
    values = (main * largest.sign()).mT @ points                         # (3, N), fewer if C < 3
    values = torch.cat([values, values.new_zeros(3 - len(values), values.shape[1])])
    ends = torch.quantile(values, torch.tensor([.01, .99], dtype=values.dtype), dim=1)
    scaled = (values - ends[0][:, None]) / (ends[1] - ends[0]).clamp(min=1e-12)[:, None]
    colours = (255 * scaled.clamp(0, 1)).round().to(torch.uint8)
    return colours.unflatten(1, feature.shape[1:]).permute(1, 2, 0).numpy()
