"""T2T-ViT (arXiv 2101.11986): tokens-to-token, then a plain ViT; this project adds a pyramid.

    tokens = project(split(attention2(split(attention1(split(image))))))       strides 4, 8, 16
    x = [class token, tokens] + position table;   x through the blocks

A split takes the k×k patch around each position as one token (unfold: 7×7 stride 4, then twice 3×3
stride 2). Shapes: maps are (B, H/s, W/s, C), tokens in the ViT (B, 1 + H/16 · W/16, C).

T2T-ViT itself has no pyramid. The levels at strides 16 and 32 are the outputs of the blocks at 3/4
and 4/4 of the depth. `fine_levels` says what the levels at strides 4 and 8 are:

- 'blocks', the default: the outputs at 1/4 and 2/4 of the depth, upsampled by transposed
  convolutions, as BEiT and XCiT do for the same heads. All four levels have seen the whole image,
  and the fine levels are as deep as these heads expect.
- 'tokens': the 64-channel maps after the two tokens-to-token attentions. These maps are computed
  anyway: cheaper and sharper, but from few layers.

Official code: yitu-opensource/T2T-ViT, models/t2t_vit.py and t2t_vit_se.py. Deviations: any input
size works; H and W are passed on, never inferred; the position table and the performer's random
matrix are buffers, not parameters.
"""
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.attention import SelfAttention, TokensToToken
from visattn_dense.checkpoints import MatchReport, rename
from visattn_dense.errors import UserError
from visattn_dense.layers import (
    LayerNorm2d,
    TransformerBlock,
    drop_path_rates,
    init_vit_weights,
    resize_position_grid,
    sinusoid_table,
)
from visattn_dense.registry import BACKBONES

from .base import DenseBackbone, check_image, pad_to_minimum

# Pixels of a patch of the first split.
PATCH = 7 * 7


def _arch(embed_dim: int, depth: int, num_heads: int, mlp_ratio: float, tokens: str = 'performer',
          se: bool = False) -> dict[str, Any]:
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
                tokens=tokens, se=se)


class SqueezeExcitation(nn.Module):
    """x · sigmoid(fc(mean over tokens of x)); fc has one hidden layer and no biases.

    Args:
        dim: channels.
        reduction: `dim` over the hidden channels.
    """

    def __init__(self, dim: int, reduction: int = 16) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(dim, dim // reduction, bias=False), nn.ReLU(),
                                nn.Linear(dim // reduction, dim, bias=False), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B, N, C)."""
        return x * self.fc(x.mean(1, keepdim=True))


class SESelfAttention(SelfAttention):
    """Self-attention with squeeze-and-excitation after its projection."""

    def __init__(self, dim: int, num_heads: int, *, scale: float | None = None) -> None:
        super().__init__(dim, num_heads, scale=scale)
        self.se_layer = SqueezeExcitation(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.se_layer(super().forward(x))


@BACKBONES.register_module()
class T2TViT(DenseBackbone):
    """T2T-ViT as a dense backbone.

    Args:
        arch: '7', '10', '12', '14', '19', '24' (performer tokens), 't_14', 't_19', 't_24'
            (transformer tokens), '14_resnext', '14_wide', '14_se', or a dict with embed_dim, depth,
            num_heads, mlp_ratio, tokens ('performer' or 'transformer') and se (bool).
        img_size: side of the (square) training images. The position table is made for this size;
            for an image of another size, each forward resizes the 2-D part of the table.
        fine_levels: the source of the levels at strides 4 and 8: 'blocks' or 'tokens', see above.
        qk_scale: factor of the attention's logits. The factor belongs to the checkpoint, and is
            saved and loaded with the weights. The released weights were trained with embed_dim^-½;
            loading a released file sets this factor. Without a checkpoint it is head_dim^-½.
        in_channels: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`. The stem is
            tokens-to-token; a stage is a quarter of the blocks.

    Raises:
        UserError: an unknown arch or option value.
    """

    archs = {
        '7': _arch(256, 7, 4, 2.), '10': _arch(256, 10, 4, 2.), '12': _arch(256, 12, 4, 2.),
        '14': _arch(384, 14, 6, 3.), '19': _arch(448, 19, 7, 3.), '24': _arch(512, 24, 8, 3.),
        't_14': _arch(384, 14, 6, 3., 'transformer'), 't_19': _arch(448, 19, 7, 3., 'transformer'),
        't_24': _arch(512, 24, 8, 3., 'transformer'),
        '14_resnext': _arch(384, 14, 32, 3.), '14_wide': _arch(768, 4, 12, 3.),
        '14_se': _arch(384, 14, 6, 3., se=True),
    }
    layouts = {
        'official': rename((r'(tokens_to_token\.attention\d\.mlp)\.0\.', r'\1.fc1.'),
                           (r'(tokens_to_token\.attention\d\.mlp)\.2\.', r'\1.fc2.')),
    }
    fresh = (r'levels\..*', r'qk_scale')

    def __init__(self, arch: str | Mapping[str, Any] = '14', *, img_size: int = 224,
                 fine_levels: Literal['blocks', 'tokens'] = 'blocks',
                 qk_scale: float | None = None, in_channels: int = 3, drop_path_rate: float = 0.,
                 out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        dims = self.resolve_arch(arch)
        dim, depth = dims['embed_dim'], dims['depth']
        if fine_levels not in ('blocks', 'tokens'):
            raise UserError(f"fine_levels is 'blocks' or 'tokens', got {fine_levels!r}")
        if dim % dims['num_heads']:
            raise UserError(f'num_heads {dims["num_heads"]} does not divide embed_dim {dim}')
        fine = dim if fine_levels == 'blocks' else TokensToToken.token_dim
        super().__init__(out_indices=out_indices, out_channels=(fine, fine, dim, dim),
                         frozen_stages=frozen_stages, norm_eval=norm_eval, with_cp=with_cp,
                         init_cfg=init_cfg)
        self.fine_levels = fine_levels
        self.grid = img_size // 16
        # Level i is the output of this many blocks.
        self.level_depths = tuple(
            0 if fine_levels == 'tokens' and i < 2 else max(1, depth * (i + 1) // 4)
            for i in range(4))
        self.tokens_to_token = TokensToToken(dim, tokens=dims['tokens'], in_channels=in_channels)
        rates = drop_path_rates(drop_path_rate, (depth,))[0]
        attention = SESelfAttention if dims['se'] else SelfAttention
        used = max(self.level_depths[i] for i in self.out_indices)
        if not used:
            raise UserError(f"out_indices {self.out_indices} with fine_levels='tokens' take no "
                            "block of the ViT; add 2 or 3, or set fine_levels='blocks'")
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=.02))
        self.register_buffer('pos_embed', sinusoid_table(1 + self.grid**2, dim))
        self.blocks = nn.ModuleList(
            TransformerBlock(dim, attention(dim, dims['num_heads']), mlp_ratio=dims['mlp_ratio'],
                             drop_path=rate)
            for rate in rates[:used])
        self.levels = nn.ModuleDict(
            {str(i): self._level(i, self.out_channels[self.out_indices.index(i)])
             for i in self.out_indices if i < 3})
        if 3 in self.out_indices:
            # The released final norm; the others start fresh.
            self.norm = nn.LayerNorm(dim)
        self.apply(init_vit_weights)
        self._scale_is_given = qk_scale is not None
        self.register_buffer('qk_scale', torch.zeros(()))
        self.set_qk_scale((dim // dims['num_heads']) ** -.5 if qk_scale is None else qk_scale)
        self.freeze_stages()

    def _level(self, index: int, dim: int) -> nn.Module:
        """The output of level 0, 1 or 2 from the map it is taken from."""
        if self.fine_levels == 'tokens' or index == 2:
            return LayerNorm2d(dim)
        up = [nn.ConvTranspose2d(dim, dim, 2, 2)]
        if index == 0:
            up += [LayerNorm2d(dim), nn.GELU(), nn.ConvTranspose2d(dim, dim, 2, 2)]
        return nn.Sequential(LayerNorm2d(dim), *up)

    def set_qk_scale(self, scale: float) -> None:
        """Set the factor of the attention's logits in every block."""
        self.qk_scale.fill_(scale)
        for block in self.blocks:
            block.attn.scale = scale

    def on_loaded(self, report: MatchReport) -> None:
        # A file without a scale is a file of the authors.
        if 'qk_scale' in report.fresh and not self._scale_is_given:
            self.set_qk_scale(self.cls_token.shape[-1] ** -.5)

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if prefix + 'qk_scale' in state_dict:
            self.set_qk_scale(float(self.qk_scale))

    def adapt_tensor(self, name: str, tensor: Tensor) -> Tensor | None:
        """Resize the 2-D part of a position table of another training size. Adapt the first tokens
        to another number of image channels, like the kernel of a first convolution."""
        if name.startswith('tokens_to_token.attention1.') and tensor.shape[-1] == 3 * PATCH:
            return self._adapt_patches(name, tensor)
        grid = round((tensor.shape[1] - 1) ** .5) if tensor.ndim == 3 else 0
        if name != 'pos_embed' or tensor.shape[1] != 1 + grid**2:
            return super().adapt_tensor(name, tensor)
        return self.position_table(tensor, (grid, grid), (self.grid, self.grid))

    def _adapt_patches(self, name: str, tensor: Tensor) -> Tensor:
        """From three channels, each with the pixels of a patch, to the channels of this model."""
        from timm.models import adapt_input_conv
        channels = self.tokens_to_token.attention1.norm1.weight.shape[0] // PATCH
        patches = tensor.unflatten(-1, (3, PATCH))
        if tensor.ndim > 1:
            return adapt_input_conv(channels, patches[..., None]).flatten(1)
        # Weight and bias of a norm belong to one channel, so they are neither summed nor scaled.
        kept = patches[torch.arange(channels) % 3] if channels > 1 else patches.mean(0, True)
        return kept.flatten()

    @staticmethod
    def position_table(table: Tensor, from_size: tuple[int, int],
                       to_size: tuple[int, int]) -> Tensor:
        """(1, 1 + N, C) for another grid. The class token's entry stays, the others are resized."""
        if from_size == to_size:
            return table
        resized = resize_position_grid(table[:, 1:], from_size, to_size)
        return torch.cat([table[:, :1], resized], dim=1)

    def freeze_stages(self) -> None:
        super().freeze_stages()
        if self.frozen_stages >= 0:
            self.cls_token.requires_grad_(False)

    def stage_modules(self) -> list[list[nn.Module]]:
        groups: list[list[nn.Module]] = [[self.tokens_to_token]]
        start = 0
        for i, depth in enumerate(self.level_depths):
            groups.append(list(self.blocks[start:depth]))
            groups[-1] += [self.levels[str(i)]] if str(i) in self.levels else []
            start = max(start, depth)
        groups[-1] += [self.norm] if hasattr(self, 'norm') else []
        return groups

    def layer_groups(self) -> list[list[nn.Module | nn.Parameter]]:
        return [[self.tokens_to_token, self.cls_token], *([block] for block in self.blocks)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to one (B, out_channels[i], H/s, W/s) for each of `out_indices`."""
        check_image(x)
        fine, middle, tokens = self.tokens_to_token(pad_to_minimum(x, 3), self.run_block)
        maps = self.block_maps(tokens)
        if self.fine_levels == 'tokens':
            maps.update({0: fine, 1: middle})
        sizes = [t.shape[1:3] for t in (fine, middle, tokens)]
        return tuple(self.level_map(i, maps[i].permute(0, 3, 1, 2), sizes)
                     for i in self.out_indices)

    def block_maps(self, tokens: Tensor) -> dict[int, Tensor]:
        """The map (B, H/16, W/16, C) after the blocks of each level that is taken from them."""
        size = tokens.shape[1:3]
        x = self.embed(tokens)
        maps = {}
        for n, block in enumerate(self.blocks, start=1):
            x = self.run_block(block, x)
            for i in self.out_indices:
                if self.level_depths[i] == n:
                    maps[i] = x[:, 1:].unflatten(1, size)
        return maps

    def embed(self, tokens: Tensor) -> Tensor:
        """The map of tokens (B, H/16, W/16, C) to what the first block takes: (B, 1 + N, C)."""
        table = self.position_table(self.pos_embed, (self.grid, self.grid),
                                    tuple(tokens.shape[1:3]))
        x = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens.flatten(1, 2)], dim=1)
        return x + table

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the tokens after the last block, without a norm: (B, 1 + N, C)."""
        check_image(x)
        x = self.embed(self.tokens_to_token(pad_to_minimum(x, 3), self.run_block)[-1])
        for block in self.blocks:
            x = self.run_block(block, x)
        return x

    def level_map(self, index: int, x: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(B, C, ·, ·) taken to level `index`; `sizes` are those of the levels 0, 1 and 2."""
        if index < 3:
            # Upsampling may overshoot the finer map by what the splits rounded up.
            height, width = sizes[index]
            return self.levels[str(index)](x)[:, :, :height, :width]
        x = self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.max_pool2d(x, 2, ceil_mode=True)
