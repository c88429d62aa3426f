"""FLatten-CSWin (arXiv 2308.00442): CSWin with focused linear attention in some of its blocks.

Trunk, blocks, shapes and output norms are those of `visattn_dense.backbones.cswin`. Only the
attention of the blocks differs. The letter of a stage says which attention its blocks have:

    L  focused linear attention
    S  softmax attention, as in CSWin
    M  linear in the first n blocks of the stage, then softmax

Official code: LeapLabTHU/FLatten-Transformer, models/flatten_cswin.py (classification, square
inputs of the training size). Deviations:
- any size works: stripes are padded (see `visattn_dense.attention.focused`), position tables are
  resized;
- None means a window of the whole map, at every size. The official la_split_size gives the width of
  such a window at the training size;
- `attn_type` is checked: a number without an M, or an M without a number, is an error.
"""
import re
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Any

from torch import Tensor, nn

from visattn_dense.attention import (
    CrossShapedWindowAttention,
    FocusedLinearAttention,
    FocusedStripeAttention,
)
from visattn_dense.errors import UserError
from visattn_dense.layers import resize_position_grid
from visattn_dense.registry import BACKBONES

from .cswin import CrossShapedBackbone, stage_widths

# The official FLatten_CSWin_* functions; widths double from stage to stage.
_TINY = dict(embed_dim=64, depths=(2, 4, 18, 1), num_heads=(2, 4, 8, 16),
             stripe_widths=(1, 2, 7, 7))
_SMALL = dict(_TINY, depths=(2, 4, 32, 2))
_BASE = dict(_TINY, embed_dim=96, depths=(3, 6, 29, 2), num_heads=(4, 8, 16, 32))


@BACKBONES.register_module()
class FLattenCSWin(CrossShapedBackbone):
    """FLatten-CSWin as a dense backbone.

    Args:
        arch: 'tiny', 'small', 'base', 'base_384' (goes with img_size=384), or a dict with
            embed_dim, depths, num_heads, stripe_widths (for the blocks with softmax attention). The
            last stage attends over the whole map, so its stripe width is not used.
        img_size: side of the (square) training images, or their (H, W). The position tables are
            made for this size; for an image of another size, each forward resizes the tables.
        attn_type: four letters, one for each stage: L, S or M. If there is an M, a number n follows
            ('MMSS3'): the first n blocks of each stage with M have linear attention.
        linear_stripe_widths: for each stage, the columns (rows) of a stripe of linear attention, or
            None for the whole map at every size. A stripe that covers the whole map at `img_size`
            also means the whole map. The last stage always attends over the whole map. The released
            models have (None,) * 4, officially la_split_size '56-28-14-7'. The default of the
            official class, '1-2-7-7', is (1, 2, 7, 7) here.
        focusing_factor, kernel_size: see `FocusedStripeAttention`.
        mask_padding: leave the padding out of softmax attention. Linear attention always leaves the
            padding out.
        in_channels, mlp_ratio, qkv_bias, drop_path_rate: see `CSWin`.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`.

    Raises:
        UserError: an unknown arch or option value.
    """

    archs = {
        'tiny': _TINY,
        'small': _SMALL,
        'base': _BASE,
        'base_384': dict(_BASE, stripe_widths=(1, 2, 12, 12)),
    }

    def __init__(self, arch: str | Mapping[str, Any] = 'tiny', *,
                 img_size: int | tuple[int, int] = 224, attn_type: str = 'LLSS',
                 linear_stripe_widths: Sequence[int | None] = (None, None, None, None),
                 focusing_factor: float = 3, kernel_size: int = 5, in_channels: int = 3,
                 mlp_ratio: float = 4., qkv_bias: bool = True, mask_padding: bool = False,
                 drop_path_rate: float = 0., out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        dims = self.resolve_arch(arch)
        widths = stage_widths(dims)
        linear_blocks = count_linear_blocks(attn_type, dims['depths'])
        native_sizes = stage_sizes(img_size)
        stripes = [None if stage == 3 else width
                   for stage, width in enumerate(_checked_widths(linear_stripe_widths))]

        def attention(stage: int, block: int) -> nn.Module:
            dim, num_heads = widths[stage], dims['num_heads'][stage]
            if block >= linear_blocks[stage]:
                return CrossShapedWindowAttention(
                    dim, num_heads,
                    stripe_width=None if stage == 3 else dims['stripe_widths'][stage],
                    qkv_bias=qkv_bias, mask_padding=mask_padding)
            native, stripe = native_sizes[stage], stripes[stage]
            return FocusedLinearAttention(
                dim, num_heads, native_size=native,
                stripe_width=None if stripe is None or stripe >= max(native) else stripe,
                qkv_bias=qkv_bias, focusing_factor=focusing_factor, kernel_size=kernel_size)

        super().__init__(dims, attention, in_channels=in_channels, mlp_ratio=mlp_ratio,
                         drop_path_rate=drop_path_rate, out_indices=out_indices,
                         frozen_stages=frozen_stages, norm_eval=norm_eval, with_cp=with_cp,
                         init_cfg=init_cfg)

    def adapt_tensor(self, name: str, tensor: Tensor) -> Tensor | None:
        """Resize a position table that was trained at another (square) img_size."""
        owner, _, leaf = name.rpartition('.')
        if leaf != 'positional_encoding' or tensor.ndim != 3:
            return None
        attention: FocusedStripeAttention = self.get_submodule(owner)
        tokens, width = tensor.shape[1], attention.stripe_width
        size = {'full': (isqrt(tokens), isqrt(tokens)), 'vertical': (tokens // width, width),
                'horizontal': (width, tokens // width)}[attention.direction]
        if size[0] * size[1] != tokens or tensor.shape[2] != attention.positional_encoding.shape[2]:
            return None
        return resize_position_grid(tensor, size, attention.native_window)


def count_linear_blocks(attn_type: str, depths: Sequence[int]) -> list[int]:
    """How many blocks of each stage have linear attention. These are the first blocks.

    Args:
        attn_type: see `FLattenCSWin`.
        depths: blocks of each stage.

    Raises:
        UserError: `attn_type` is not valid.
    """
    match = re.fullmatch(r'([LSM]{4})(\d*)', attn_type)
    if not match or ('M' in match[1]) != bool(match[2]):
        raise UserError('attn_type is four letters, one for each stage (L linear, S softmax, M '
                        'mixed), and after them, if there is an M, the number of linear blocks: '
                        f"'LLSS', 'MMSS3'; got {attn_type!r}")
    return [{'L': depth, 'S': 0, 'M': min(depth, int(match[2] or 0))}[letter]
            for letter, depth in zip(match[1], depths, strict=True)]


def stage_sizes(img_size: int | tuple[int, int]) -> list[tuple[int, int]]:
    """(H, W) of the four stages' maps for an image of `img_size`, by the trunk's convolutions."""
    sides = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    if len(sides) != 2 or min(sides) < 3:
        raise UserError('img_size is the side of the training images, or their (H, W), at least 3; '
                        f'got {img_size!r}')
    sizes = [((sides[0] - 3) // 4 + 1, (sides[1] - 3) // 4 + 1)]
    for _ in range(3):
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _checked_widths(widths: Sequence[int | None]) -> Sequence[int | None]:
    if (isinstance(widths, str) or len(widths) != 4
            or not all(w is None or isinstance(w, int) and w > 0 for w in widths)):
        raise UserError('linear_stripe_widths has an entry for each of the four stages, a number '
                        'of columns or None for the whole map: (None, None, 7, None); '
                        f'got {widths!r}')
    return widths
