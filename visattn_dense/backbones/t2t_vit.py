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

The forms of T2T-ViT differ in one part each. `attention/tokens.py` has the tokens by performer,
transformer or convolutions; `t2t_vit_blocks.py` says which blocks a form has. 'dense' is DenseNet's
idea, not dense prediction. Its blocks form four stages of growing width; with 'blocks', the outputs
of these stages are the four levels.

Official code: yitu-opensource/T2T-ViT, models/t2t_vit.py, t2t_vit_se.py, t2t_vit_dense.py and
t2t_vit_ghost.py. Deviations: any input size works; H and W are passed on, never inferred; the
position table and the performer's random matrix are buffers, not parameters; those of a form are in
its own file.
"""
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from visattn_dense.attention import ConvolutionTokens, TokensToToken
from visattn_dense.checkpoints import MatchReport, rename
from visattn_dense.errors import UserError
from visattn_dense.layers import (
    LayerNorm2d,
    drop_path_rates,
    init_vit_weights,
    resize_position_grid,
    sinusoid_table,
)
from visattn_dense.layers.norm import layer_norm
from visattn_dense.registry import BACKBONES

from .base import DenseBackbone, check_image, pad_to_minimum
from .t2t_vit_blocks import make_block, plan_blocks
from .t2t_vit_dense import Transition

# Pixels of a patch of the first split.
PATCH = 7 * 7


def _arch(embed_dim: int, depth: int | tuple[int, ...], num_heads: int, mlp_ratio: float,
          tokens: str = 'performer', **block: Any) -> dict[str, Any]:
    return dict(embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio,
                tokens=tokens, **block)


@BACKBONES.register_module()
class T2TViT(DenseBackbone):
    """T2T-ViT as a dense backbone.

    Args:
        arch: '7', '10', '12', '14', '19', '24' (performer tokens), 't_14', 't_19', 't_24'
            (transformer tokens), 'c_14' (convolution tokens), '14_resnext', '14_wide', '14_se',
            '16_ghost', 'dense', or a dict with embed_dim, depth, num_heads, mlp_ratio, tokens
            ('performer', 'transformer' or 'convolution') and at most one of: se=True; ghost=True
            (mlp_ratio is 3); growth, the channels that each block of T2T-ViT-dense adds. With
            growth, embed_dim is the width before the first block, and depth has the numbers of
            blocks of the four stages.
        img_size: side of the (square) training images. The position table is made for this size;
            for an image of another size, each forward resizes the 2-D part of the table.
        fine_levels: the source of the levels at strides 4 and 8: 'blocks' or 'tokens', see above.
        qk_scale: factor of the attention's logits. The factor belongs to the checkpoint, and is
            saved and loaded with the weights. The released weights were trained with embed_dim^-½;
            loading a released file sets this factor. Without a checkpoint it is head_dim^-½.
            0 stands for head_dim^-½ of each block. T2T-ViT-dense, whose blocks differ in width, has
            0 also after loading a file of the authors, who set no other scale for it.
        in_channels: channels of the image.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`. The stem is
            tokens-to-token; a stage is a quarter of the blocks, or a stage of T2T-ViT-dense with
            the transition before it.

    Raises:
        UserError: an unknown arch or option value, or entries of an arch that exclude each other.
    """

    archs = {
        '7': _arch(256, 7, 4, 2.), '10': _arch(256, 10, 4, 2.), '12': _arch(256, 12, 4, 2.),
        '14': _arch(384, 14, 6, 3.), '19': _arch(448, 19, 7, 3.), '24': _arch(512, 24, 8, 3.),
        't_14': _arch(384, 14, 6, 3., 'transformer'), 't_19': _arch(448, 19, 7, 3., 'transformer'),
        't_24': _arch(512, 24, 8, 3., 'transformer'),
        'c_14': _arch(384, 14, 6, 3., 'convolution'),
        '14_resnext': _arch(384, 14, 32, 3.), '14_wide': _arch(768, 4, 12, 3.),
        '14_se': _arch(384, 14, 6, 3., se=True), '16_ghost': _arch(384, 16, 6, 3., ghost=True),
        'dense': _arch(128, (3, 6, 6, 4), 8, 2., growth=64),
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
        dim = dims['embed_dim']
        if fine_levels not in ('blocks', 'tokens'):
            raise UserError(f"fine_levels is 'blocks' or 'tokens', got {fine_levels!r}")
        if not isinstance(img_size, int) or img_size < 16:
            raise UserError('img_size is the side of the (square) training images, at least 16; '
                            f'got {img_size!r}')
        steps, depths = plan_blocks(dims)
        widths = [steps[depth - 1][1] for depth in depths]
        if fine_levels == 'tokens':
            depths, widths[:2] = (0, 0, *depths[2:]), [TokensToToken.token_dim] * 2
        super().__init__(out_indices=out_indices, out_channels=widths,
                         frozen_stages=frozen_stages, norm_eval=norm_eval, with_cp=with_cp,
                         init_cfg=init_cfg)
        self.fine_levels = fine_levels
        self.grid = img_size // 16
        # Level i is the output of this many of `blocks`.
        self.level_depths = depths
        self.tokens_to_token = (
            ConvolutionTokens(dim, in_channels=in_channels) if dims['tokens'] == 'convolution'
            else TokensToToken(dim, tokens=dims['tokens'], in_channels=in_channels))
        used = max(self.level_depths[i] for i in self.out_indices)
        if not used:
            raise UserError(f"out_indices {self.out_indices} with fine_levels='tokens' take no "
                            "block of the ViT; add 2 or 3, or set fine_levels='blocks'")
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.zeros(1, 1, dim), std=.02))
        self.register_buffer('pos_embed', sinusoid_table(1 + self.grid**2, dim))
        rates = iter(drop_path_rates(drop_path_rate, (sum(b >= a for a, b in steps),))[0])
        self.blocks = nn.ModuleList(
            Transition(a, b) if b < a else make_block(dims, a, b, drop_path=next(rates))
            for a, b in steps[:used])
        self.levels = nn.ModuleDict(
            {str(i): self._level(i, self.out_channels[self.out_indices.index(i)])
             for i in self.out_indices if i < 3})
        if 3 in self.out_indices:
            # The released final norm; the others start fresh.
            self.norm = nn.LayerNorm(widths[3])
        self.apply(init_vit_weights)
        self._scale_is_given = qk_scale is not None
        # The scales without a checkpoint, and with a file of the authors.
        default, self._released_scale = ((0., 0.) if dims.get('growth') else
                                         ((dim // dims['num_heads']) ** -.5, dim ** -.5))
        self.register_buffer('qk_scale', torch.zeros(()))
        self.set_qk_scale(default if qk_scale is None else qk_scale)
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
        """Set the factor of the attention's logits in every block; 0: its own head_dim^-½."""
        self.qk_scale.fill_(scale)
        for block in self.blocks:
            if not isinstance(block, Transition):
                block.attn.scale = scale or None

    def on_loaded(self, report: MatchReport) -> None:
        # A file without a scale is a file of the authors.
        if 'qk_scale' in report.fresh and not self._scale_is_given:
            self.set_qk_scale(self._released_scale)

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
        groups: list[list[nn.Module | nn.Parameter]] = [[self.tokens_to_token, self.cls_token]]
        entry: list[nn.Module] = []
        for block in self.blocks:
            if isinstance(block, Transition):
                entry = [block]
            else:
                groups.append([*entry, block])
                entry = []
        return groups

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
        """The map (B, H/16, W/16, C) after the blocks of each level that is taken from them.

        C is the level's own in T2T-ViT-dense.
        """
        x, start, maps = self.embed(tokens), 0, {}
        for i in sorted(self.out_indices):
            if end := self.level_depths[i]:
                x = self.run_blocks(self.blocks[start:end], x)
                start = end
                maps[i] = x[:, 1:].unflatten(1, tokens.shape[1:3])
        return maps

    def embed(self, tokens: Tensor) -> Tensor:
        """The map of tokens (B, H/16, W/16, C) to what the first block takes: (B, 1 + N, C)."""
        table = self.position_table(self.pos_embed, (self.grid, self.grid),
                                    tuple(tokens.shape[1:3]))
        x = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens.flatten(1, 2)], dim=1)
        return x + table

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the tokens after the last block, without a norm: (B, 1 + N, C)."""
        check_image(x)
        x = self.embed(self.tokens_to_token(pad_to_minimum(x, 3), self.run_block)[-1])
        return self.run_blocks(self.blocks, x)

    def level_map(self, index: int, x: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """(B, C, ·, ·) taken to level `index`; `sizes` are those of the levels 0, 1 and 2."""
        if index < 3:
            # Upsampling may overshoot the finer map by what the splits rounded up.
            height, width = sizes[index]
            return self.levels[str(index)](x)[:, :, :height, :width]
        x = layer_norm(self.norm, x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return F.max_pool2d(x, 2, ceil_mode=True)
