"""The light segmentation head of the released EfficientViT models (arXiv 2205.14756, §3.2).

    x = Σ_i up(BN(conv1×1(f_i)))  over the maps at strides 32, 16 and 8, up to stride 8, bicubic
    x += block(x), depth times;  [x = act(BN(conv1×1(x))), wider];  logits = conv1×1(x)

Official code: mit-han-lab/efficientvit, efficientvit/models/efficientvit/seg.py (`SegHead`).
Deviations: maps are resized to the size of the finest map, not by a fixed factor, so every image
size works (the results are the same at multiples of 32); the classifier is mmseg's `conv_seg`.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.registry import MODELS
from torch import Tensor, nn

from visattn_dense.errors import UserError, did_you_mean
from visattn_dense.layers import ConvNormAct, FusedMBConv, MBConv, Residual
from visattn_dense.zoo.heads import efficientvit_seg

_BLOCKS = {'mbconv': MBConv, 'fused': FusedMBConv}


@MODELS.register_module()
class EfficientViTSegHead(BaseDecodeHead):
    """Sum of resized maps, a few convolution blocks, a classifier.

    Args:
        in_channels: channels of the maps, finest first.
        in_index: the indices of these maps among the backbone's outputs, finest first.
        width: channels of the head (official `head_width`).
        depth: number of blocks (`head_depth`).
        block: 'mbconv' (B) or 'fused' (L): inverted residuals or their fused form (`middle_op`).
        expand_ratio: hidden channels of a block over `width`.
        final_expand: channels before the classifier over `width`; None: no layer widens them.
        act: 'hardswish' (B) or 'gelu_tanh' (L).
        norm_eps: eps of the BatchNorms; 1e-7 in the released L models.
        dropout_ratio, num_classes, loss_decode, ...: as in every head of mmseg. By default there is
            no dropout, as in the official code.

    Raises:
        UserError: an unknown block.
    """

    layouts = {'official': efficientvit_seg}

    def __init__(self, in_channels: Sequence[int], *, in_index: Sequence[int] = (1, 2, 3),
                 width: int, depth: int = 3, block: str = 'mbconv', expand_ratio: float = 4.,
                 final_expand: int | None = None, act: str = 'hardswish', norm_eps: float = 1e-5,
                 dropout_ratio: float = 0., **kwargs) -> None:
        if block not in _BLOCKS:
            raise UserError(f'EfficientViTSegHead has no block {block!r}. '
                            f'{did_you_mean(block, _BLOCKS)}')
        super().__init__(list(in_channels), width * (final_expand or 1), in_index=list(in_index),
                         input_transform='multiple_select', dropout_ratio=dropout_ratio, **kwargs)
        self.inputs = nn.ModuleList(
            ConvNormAct(channels, width, norm_eps=norm_eps) for channels in in_channels)
        self.blocks = nn.ModuleList(
            Residual(_BLOCKS[block](width, width, expand_ratio=expand_ratio, act=act,
                                    norm_eps=norm_eps)) for _ in range(depth))
        self.expand = (nn.Identity() if final_expand is None else
                       ConvNormAct(width, self.channels, act=act, norm_eps=norm_eps))

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits of the backbone's outputs: (B, num_classes, H/8, W/8)."""
        maps = [conv(x) for conv, x in zip(self.inputs, self._transform_inputs(inputs),
                                           strict=True)]
        x = maps[0]
        # Bicubic resizing loses too much precision in half precision.
        with torch.autocast(device_type=x.device.type, enabled=False):
            for coarse in maps[1:]:
                up = F.interpolate(coarse.float(), size=maps[0].shape[2:], mode='bicubic',
                                   align_corners=False)
                x = x + up.to(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.cls_seg(self.expand(x))
