"""Size and cost of every variant, beside what the authors published: docs/models.md."""
from __future__ import annotations

from dataclasses import dataclass

import torch

from visattn_dense.interop.classifier import FORMS, Classifier
from visattn_dense.registry import BACKBONES

from .flops import count_flops
from .report import table

# The authors' numbers: top-1 on ImageNet, parameters in millions with the classifier, MACs in
# billions at the size of the top-1 (224 unless noted). From the papers' tables and the READMEs of
# the official repositories. A variant that is not here has no published numbers.
PUBLISHED = {
    ('CSWin', 'tiny'): ('82.8', 23, 4.3), ('CSWin', 'small'): ('83.6', 35, 6.9),
    ('CSWin', 'base'): ('84.2', 78, 15.0), ('CSWin', 'large_384'): ('87.5 (22k, 384)', 173, 96.8),
    ('FLattenCSWin', 'tiny'): ('83.1', 21, 4.3), ('FLattenCSWin', 'small'): ('83.8', 35, 6.9),
    ('FLattenCSWin', 'base'): ('84.5', 75, 15.0),
    ('BiFormer', 'small'): ('83.8', 25.5, 4.5), ('BiFormer', 'base'): ('84.3', 56.8, 9.8),
    ('EfficientViT', 'b1'): ('79.4', 9.1, .52), ('EfficientViT', 'b2'): ('82.1', 24, 1.6),
    ('EfficientViT', 'b3'): ('83.5', 49, 4.0), ('EfficientViT', 'l1'): ('84.5', 53, 5.3),
    ('EfficientViT', 'l2'): ('85.1', 64, 6.9),
    ('T2TViT', '14'): ('81.5', 21.5, 4.8), ('T2TViT', '19'): ('81.9', 39.2, 8.5),
    ('T2TViT', '24'): ('82.3', 64.1, 13.8),
}


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        family, arch: the backbone and its variant.
        backbone: parameters of the dense backbone, output norms and pyramid included.
        classifier: parameters of the ImageNet model: without what a dense backbone adds, with the
            classifier and the fixed tables that the authors count; None for a family without one.
        macs: multiply-accumulates of the dense backbone by the side of a square image.
    """

    family: str
    arch: str
    backbone: int
    classifier: int | None
    macs: dict[int, int]


def classifier_parameters(family: str, arch: str) -> int | None:
    """Parameters of the authors' ImageNet model of this variant; None for a family without one."""
    if family not in FORMS:
        return None
    with torch.device('meta'):
        model = Classifier(family, arch)
    # The authors of T2T-ViT count their fixed tables, which are buffers here.
    tables = [b for name, b in model.backbone.named_buffers() if name not in model.backbone.fresh
              ] if family == 'T2TViT' else []
    return sum(tensor.numel() for tensor in (*model.parameters(), *tables))


def measure_variant(family: str, arch: str, sizes: tuple[int, ...] = (512, 1024)) -> Variant:
    """Build a variant without memory (meta tensors) and count."""
    with torch.device('meta'):
        model = BACKBONES.build(dict(type=family, arch=arch)).eval()
        macs = {}
        for size in sizes:
            image = torch.empty(1, 3, size, size)
            with torch.no_grad():
                macs[size] = count_flops(lambda image=image: model(image)).total // 2
    return Variant(family, arch, sum(p.numel() for p in model.parameters()),
                   classifier_parameters(family, arch), macs)


def models_table() -> str:
    """docs/models.md."""
    lines = [
        '# Models',
        '',
        'Written by `python tools/model_table.py`; a test keeps it up to date. Parameters in '
        'millions, operations in 10⁹ multiply-accumulates (MACs) of the dense backbone with '
        'default arguments, attention counted, counted here. *Published* numbers are the '
        "authors': top-1 on ImageNet, parameters and MACs of the classifier, at 224×224 unless "
        "noted. *With classifier* is what this project's backbone would have as that classifier: "
        'it should equal the published parameters up to their rounding.',
        '',
    ]
    rows = []
    for family in sorted(BACKBONES):
        for arch in BACKBONES.get(family).archs:
            row = measure_variant(family, arch)
            top1, millions, giga = PUBLISHED.get((family, arch), ('', '', ''))
            rows.append((
                family, arch, f'{row.backbone / 1e6:.1f}',
                '' if row.classifier is None else f'{row.classifier / 1e6:.1f}',
                f'{millions}', f'{row.macs[512] / 1e9:.1f}', f'{row.macs[1024] / 1e9:.1f}', top1,
                f'{giga}'))
    lines += table(
        ('backbone', 'arch', 'parameters', 'with classifier', 'published', 'MACs at 512',
         'at 1024', 'published top-1', 'published MACs'), rows, words=2)
    return '\n'.join(lines) + '\n'
