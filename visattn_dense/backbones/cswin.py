"""CSWin Transformer (arXiv 2107.00652): a four-stage pyramid of cross-shaped window attention.

    block:  x += DropPath(attn(norm1(x)));  x += DropPath(mlp(norm2(x)))

Shapes: the image (B, 3, H, W); inside a stage (B, H/s, W/s, C); out (B, C, H/s, W/s) at the strides
s = 4, 8, 16, 32. The convolutions set the sizes: 7×7 stride 4 padding 2, then three times 3×3
stride 2 padding 1.

Official code: microsoft/CSWin-Transformer, models/cswin.py (classification) and
segmentation/backbone/cswin_transformer.py (dense). Deviations: the variant sets heads and stripe
widths, so `large` can be built (the official dense code cannot build `large`); forward changes
nothing in the module; images smaller than three pixels are padded to three, so every size works.
"""
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from visattn_dense.attention import CrossShapedWindowAttention
from visattn_dense.checkpoints import rename
from visattn_dense.layers import TransformerBlock, drop_path_rates, init_vit_weights
from visattn_dense.layers.norm import layer_norm
from visattn_dense.registry import BACKBONES

from .base import DenseBackbone, check_image, groups_by_depth, pad_to_minimum

# Table 2 of the paper; widths double from stage to stage.
_TINY = dict(embed_dim=64, depths=(1, 2, 21, 1), num_heads=(2, 4, 8, 16),
             stripe_widths=(1, 2, 7, 7))
_SMALL = dict(_TINY, depths=(2, 4, 32, 2))
_BASE = dict(_SMALL, embed_dim=96, num_heads=(4, 8, 16, 32))
_LARGE = dict(_SMALL, embed_dim=144, num_heads=(6, 12, 24, 24))


class ConvEmbed(nn.Module):
    """A strided convolution and a LayerNorm: the patch embedding and the merging between stages.

    Args:
        in_dim, dim: channels in and out.
        kernel_size, stride, padding: of the convolution.
    """

    def __init__(self, in_dim: int, dim: int, *, kernel_size: int, stride: int,
                 padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, H', W', C'): NHWC inside the stages."""
        return layer_norm(self.norm, self.conv(x).permute(0, 2, 3, 1))


class Stage(NamedTuple):
    """The modules of a stage; norm is None if the stage is not returned."""
    embed: ConvEmbed
    blocks: nn.ModuleList
    norm: nn.LayerNorm | None


def stage_widths(dims: Mapping[str, Any]) -> list[int]:
    """Channels of the four stages."""
    return [dims['embed_dim'] * 2**i for i in range(4)]


class CrossShapedBackbone(DenseBackbone):
    """The trunk: a stem, four stages of blocks, merging between stages, an output norm per stage.

    Args:
        dims: a resolved arch, with embed_dim and depths; widths double from stage to stage.
        build_attention: a function of (stage, block), both counted from 0. It returns the attention
            of the block: any module from (B, H, W, C) to (B, H, W, C).
        in_channels: channels of the image.
        mlp_ratio: hidden channels of the MLPs over the stage's width.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`.
    """

    layouts = {
        'official': rename(
            (r'^stage1_conv_embed\.0\.', 'embed1.conv.'),
            (r'^stage1_conv_embed\.2\.', 'embed1.norm.'),
            (r'^merge1\.', 'embed2.'), (r'^merge2\.', 'embed3.'), (r'^merge3\.', 'embed4.'),
            (r'^(stage\d\.\d+)\.(qkv|attns|proj)\.', r'\1.attn.\2.'),
        ),
    }
    fresh = (r'norm[1-4]\.(weight|bias)',)

    def __init__(self, dims: Mapping[str, Any], build_attention: Callable[[int, int], nn.Module],
                 *, in_channels: int, mlp_ratio: float, drop_path_rate: float,
                 out_indices: Sequence[int], **common: Any) -> None:
        widths = stage_widths(dims)
        super().__init__(out_indices=out_indices, out_channels=widths, **common)
        rates = drop_path_rates(drop_path_rate, dims['depths'])
        for i, width in enumerate(widths[:max(self.out_indices) + 1]):
            embed = (dict(kernel_size=7, stride=4, padding=2) if i == 0
                     else dict(kernel_size=3, stride=2, padding=1))
            stage = nn.ModuleList(
                TransformerBlock(width, build_attention(i, block), mlp_ratio=mlp_ratio,
                                 drop_path=rate)
                for block, rate in enumerate(rates[i]))
            self.add_module(f'embed{i + 1}',
                            ConvEmbed(widths[i - 1] if i else in_channels, width, **embed))
            self.add_module(f'stage{i + 1}', stage)
            if i in self.out_indices:
                self.add_module(f'norm{i + 1}', nn.LayerNorm(width))
        self.apply(init_vit_weights)
        self.freeze_stages()

    @property
    def stages(self) -> list[Stage]:
        """The stages. The modules have the official names: stage1, norm1, ..."""
        return [Stage(getattr(self, f'embed{i}'), getattr(self, f'stage{i}'),
                      getattr(self, f'norm{i}', None))
                for i in range(1, max(self.out_indices) + 2)]

    def stage_modules(self) -> list[list[nn.Module]]:
        first, *others = ([module for module in stage if module is not None]
                          for stage in self.stages)
        return [first[:1], first[1:], *others]

    def layer_groups(self) -> list[list[nn.Module | nn.Parameter]]:
        return groups_by_depth((stage.embed, stage.blocks) for stage in self.stages)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to one (B, out_channels[i], H/s, W/s) for each of `out_indices`."""
        check_image(x)
        x = pad_to_minimum(x, 3)
        outs = {}
        for i, stage in enumerate(self.stages):
            x = self.run_blocks(stage.blocks, stage.embed(x))       # (B, H/s, W/s, C)
            if stage.norm is not None:
                outs[i] = layer_norm(stage.norm, x).permute(0, 3, 1, 2)
            x = x.permute(0, 3, 1, 2)
        return tuple(outs[i] for i in self.out_indices)


@BACKBONES.register_module()
class CSWin(CrossShapedBackbone):
    """CSWin as a dense backbone.

    Args:
        arch: 'tiny', 'small', 'base', 'large', 'base_384', 'large_384', or a dict with embed_dim,
            depths, num_heads, stripe_widths (the official split_size). The last stage attends over
            the whole map, so its stripe width is not used.
        in_channels: channels of the image.
        mlp_ratio: hidden channels of the MLPs over the stage's width.
        qkv_bias: whether the qkv projections have a bias.
        mask_padding: leave the padding of the map out of the softmax; see `StripeAttention`.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`.

    Raises:
        UserError: an unknown arch or option value.
    """

    archs = {
        'tiny': _TINY,
        'small': _SMALL,
        'base': _BASE,
        'large': _LARGE,
        'base_384': dict(_BASE, stripe_widths=(1, 2, 12, 12)),
        'large_384': dict(_LARGE, stripe_widths=(1, 2, 12, 12)),
    }

    def __init__(self, arch: str | Mapping[str, Any] = 'tiny', *, in_channels: int = 3,
                 mlp_ratio: float = 4., qkv_bias: bool = True, mask_padding: bool = False,
                 drop_path_rate: float = 0., out_indices: Sequence[int] = (0, 1, 2, 3),
                 frozen_stages: int = -1, norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        dims = self.resolve_arch(arch)
        widths = stage_widths(dims)

        def attention(stage: int, block: int) -> nn.Module:
            return CrossShapedWindowAttention(
                widths[stage], dims['num_heads'][stage],
                stripe_width=None if stage == 3 else dims['stripe_widths'][stage],
                qkv_bias=qkv_bias, mask_padding=mask_padding)

        super().__init__(dims, attention, in_channels=in_channels, mlp_ratio=mlp_ratio,
                         drop_path_rate=drop_path_rate, out_indices=out_indices,
                         frozen_stages=frozen_stages, norm_eval=norm_eval, with_cp=with_cp,
                         init_cfg=init_cfg)
