"""BiFormer (arXiv 2303.08810): a four-stage pyramid of bi-level routing attention.

    block:  x += pos_embed(x);  x += DropPath(attn(norm1(x)));  x += DropPath(mlp(norm2(x)))

pos_embed is a depthwise 3×3 convolution. Shapes: the image (B, 3, H, W); inside a stage
(B, H/s, W/s, C); out (B, C, H/s, W/s) at the strides s = 4, 8, 16, 32.

Official code: rayleizhu/BiFormer, models/biformer.py, models/biformer_stl.py and
semantic_segmentation/models_mm/biformer_mm.py. Deviations: padding to multiples of `n_win` is on by
default, so every size works; one table has the heads of all variants, `stl` too.
"""
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from visattn_dense.attention import BiLevelRoutingAttention, LePESelfAttention, SelfAttention
from visattn_dense.checkpoints import rename
from visattn_dense.errors import UserError
from visattn_dense.layers import (
    ConvNorms,
    DepthwiseConv,
    Handover,
    TransformerBlock,
    drop_path_rates,
    init_vit_weights,
)
from visattn_dense.layers.linear import bias_apart
from visattn_dense.layers.norm import layer_norm
from visattn_dense.registry import BACKBONES

from .base import DenseBackbone, check_image, groups_by_depth, pad_to_minimum

# eps of every LayerNorm in the official code, 'important to avoid attention collapsing'.
EPS = 1e-6

# models/biformer.py and models/biformer_stl.py. `overlapping`: 3×3 convolutions between the stages
# (two of these in the stem) and pos_embed in the blocks; else Swin's layout.
_TINY = dict(embed_dims=(64, 128, 256, 512), depths=(2, 2, 8, 2), mlp_ratio=3., overlapping=True)
_SMALL = dict(_TINY, depths=(4, 4, 18, 4))
_BASE = dict(_SMALL, embed_dims=(96, 192, 384, 768))
_STL = dict(embed_dims=(96, 192, 384, 768), depths=(2, 2, 6, 2), mlp_ratio=4., overlapping=False)


class ConvMixer(nn.Module):
    """1×1, depthwise 5×5 and 1×1 convolutions in place of attention (`topk=0`). NHWC in and out."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pointwise1 = nn.Conv2d(dim, dim, 1)
        self.depthwise = nn.Conv2d(dim, dim, 5, padding=2, groups=dim)
        self.pointwise2 = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise2(self.depthwise(self.pointwise1(x.permute(0, 3, 1, 2))))
        return x.permute(0, 2, 3, 1)


class BiFormerBlock(TransformerBlock):
    """A transformer block after a positional convolution. (B, H, W, C) in and out.

    Args:
        dim: channels.
        attn, options: see `TransformerBlock`.
    """

    def __init__(self, dim: int, attn: nn.Module, **options: Any) -> None:
        super().__init__(dim, attn, **options)
        self.pos_embed = DepthwiseConv(dim)

    def forward(self, x: Tensor) -> Tensor:
        # `finish` takes the only references to these maps, and frees them before the MLP.
        stream = list(self.pos_embed.add_to_and_norm(x, self.norm1))
        parts = list(bias_apart(self.attn, stream.pop()))
        return self.finish(x=stream.pop(), handover=Handover(), bias=parts.pop(),
                           update=parts.pop())


@BACKBONES.register_module()
class BiFormer(DenseBackbone):
    """BiFormer as a dense backbone.

    Args:
        arch: 'tiny', 'small', 'base', 'stl', or a dict with embed_dims, depths, mlp_ratio and
            overlapping (3×3 convolutions between stages, or Swin's patches).
        in_channels: channels of the image.
        n_win: regions along each side of the map, one number or one for each stage. The authors use
            7 for 224×224 classification, 8 for 512×512 ADE20K, 16 for COCO.
        topks: for each stage, the number of regions that each region attends to. Or −2: attention
            over the whole map with LePE; −1: the same without LePE; 0: convolutions in place of
            attention.
        head_dim: channels of q and k in a head.
        qk_dims: channels of q and k for each stage, the stage's width by default.
        side_dwconv: kernel size of LePE, 0 for none.
        kv_downsample_mode, kv_downsample_ratios, kv_per_wins, param_attention, param_routing,
            diff_routing, soft_routing, auto_pad: see `BiLevelRoutingAttention`. Arguments with a
            plural name have an entry for each stage.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0.
        out_indices, frozen_stages, norm_eval, with_cp, init_cfg: see `DenseBackbone`.

    Raises:
        UserError: an unknown arch or option value.
        ValueError: options of the attention that do not fit; see `BiLevelRoutingAttention`.
    """

    archs = {'tiny': _TINY, 'small': _SMALL, 'base': _BASE, 'stl': _STL}
    layouts = {
        'official': rename(
            (r'^(stages\.\d+)\.blocks\.', r'\1.'),               # stl
            (r'\.mlp\.0\.', '.mlp.fc1.'), (r'\.mlp\.[23]\.', '.mlp.fc2.'),
            (r'\.attn\.1\.', '.attn.pointwise1.'), (r'\.attn\.2\.', '.attn.depthwise.'),
            (r'\.attn\.3\.', '.attn.pointwise2.'),
        ),
    }
    fresh = (r'extra_norms\..*',)

    def __init__(self, arch: str | Mapping[str, Any] = 'small', *, in_channels: int = 3,
                 n_win: int | Sequence[int] = 8, topks: Sequence[int] = (1, 4, 16, -2),
                 head_dim: int = 32, qk_dims: Sequence[int | None] = (None,) * 4,
                 side_dwconv: int = 5, kv_downsample_mode: str = 'identity',
                 kv_downsample_ratios: Sequence[int] = (4, 2, 1, 1),
                 kv_per_wins: Sequence[int] = (2, 2, 1, 1), param_attention: str = 'qkvo',
                 param_routing: bool = False, diff_routing: bool = False,
                 soft_routing: bool = False, auto_pad: bool = True, drop_path_rate: float = 0.,
                 out_indices: Sequence[int] = (0, 1, 2, 3), frozen_stages: int = -1,
                 norm_eval: bool = False, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        dims = self.resolve_arch(arch)
        widths = dims['embed_dims']
        super().__init__(out_indices=out_indices, out_channels=widths, frozen_stages=frozen_stages,
                         norm_eval=norm_eval, with_cp=with_cp, init_cfg=init_cfg)
        n_wins = (n_win,) * 4 if isinstance(n_win, int) else tuple(n_win)
        rates = drop_path_rates(drop_path_rate, dims['depths'])
        self.downsample_layers = nn.ModuleList()
        self.stages = nn.ModuleList()
        self.extra_norms = nn.ModuleDict()
        for i, width in enumerate(widths[:max(self.out_indices) + 1]):
            previous = widths[i - 1] if i else in_channels
            qk_dim = qk_dims[i] or width
            if topks[i] > 0 and not 0 < head_dim <= qk_dim:
                raise UserError(f'head_dim is at most the channels of q and k, {qk_dim} in stage '
                                f'{i}; got {head_dim}')
            options = dict(
                n_win=n_wins[i], topk=topks[i], qk_dim=qk_dim, side_dwconv=side_dwconv,
                kv_downsample_mode=kv_downsample_mode, kv_per_win=kv_per_wins[i],
                kv_downsample_ratio=kv_downsample_ratios[i], param_attention=param_attention,
                param_routing=param_routing, diff_routing=diff_routing, soft_routing=soft_routing,
                auto_pad=auto_pad)
            self.downsample_layers.append(
                _downsample(previous, width, stem=i == 0, overlapping=dims['overlapping']))
            block = BiFormerBlock if dims['overlapping'] else TransformerBlock
            self.stages.append(nn.Sequential(*(
                block(width, _attention(width, qk_dim // head_dim, options),
                      mlp_ratio=dims['mlp_ratio'], drop_path=rate, norm_eps=EPS)
                for rate in rates[i])))
            if i in self.out_indices:
                self.extra_norms[str(i)] = nn.LayerNorm(width, eps=EPS)
        self.apply(init_vit_weights)
        self.freeze_stages()

    def stage_modules(self) -> list[list[nn.Module]]:
        groups = [[self.downsample_layers[0]]]
        for i, stage in enumerate(self.stages):
            groups.append([stage] if i == 0 else [self.downsample_layers[i], stage])
            if i in self.out_indices:
                groups[-1].append(self.extra_norms[str(i)])
        return groups

    def layer_groups(self) -> list[list[nn.Module | nn.Parameter]]:
        return groups_by_depth(zip(self.downsample_layers, self.stages, strict=True))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) to one (B, out_channels[i], H/s, W/s) for each of `out_indices`."""
        check_image(x)
        outs = {}
        for i, (downsample, stage) in enumerate(
                zip(self.downsample_layers, self.stages, strict=True)):
            # An image smaller than a patch of Swin would give no token.
            x = pad_to_minimum(x, 4 if i == 0 else 2)
            # A sum gets the strides of its first operand. The convolution's result is NCHW in
            # memory: without contiguous(), all residual sums of the stage would be NCHW too, and
            # every norm would copy its input.
            x = self.run_blocks(stage, downsample(x).permute(0, 2, 3, 1).contiguous())
            if i in self.out_indices:
                outs[i] = layer_norm(self.extra_norms[str(i)], x).permute(0, 3, 1, 2)
            x = x.permute(0, 3, 1, 2)
        return tuple(outs[i] for i in self.out_indices)


def _downsample(in_dim: int, dim: int, *, stem: bool, overlapping: bool) -> ConvNorms:
    """The downsampling before a stage: by 4 in the stem, by 2 elsewhere. NCHW in and out."""
    if stem and overlapping:
        return ConvNorms(
            nn.Conv2d(in_dim, dim // 2, 3, 2, 1), nn.BatchNorm2d(dim // 2), nn.GELU(),
            nn.Conv2d(dim // 2, dim, 3, 2, 1), nn.BatchNorm2d(dim))
    if overlapping:
        return ConvNorms(nn.Conv2d(in_dim, dim, 3, 2, 1), nn.BatchNorm2d(dim))
    if stem:
        return ConvNorms(nn.Conv2d(in_dim, dim, 4, 4), nn.BatchNorm2d(dim))
    return ConvNorms(nn.BatchNorm2d(in_dim), nn.Conv2d(in_dim, dim, 2, 2))


def _attention(dim: int, num_heads: int, options: Mapping[str, Any]) -> nn.Module:
    """The attention for `topk`; see `BiFormer`."""
    topk = options['topk']
    if topk > 0:
        return BiLevelRoutingAttention(dim, num_heads, **options)
    if topk == -2:
        return (LePESelfAttention(dim, 8, lepe_kernel_size=options['side_dwconv'])
                if options['side_dwconv'] else SelfAttention(dim, 8))
    if topk == -1:
        return SelfAttention(dim, 8)
    if topk == 0:
        return ConvMixer(dim)
    raise UserError(f'topks are the numbers of routed regions, or -2, -1, 0 for full attention '
                    f'with LePE, without, and convolutions; got {topk}')
