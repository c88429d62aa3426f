"""torchvision's NMS and RoIAlign as ONNX's own operators NonMaxSuppression and RoiAlign.

    torch.onnx.export(..., custom_translation_table=translations())

ONNX's RoiAlign takes the average over the same sample points as torchvision: `half_pixel` is
aligned=True, and sampling_ratio 0 takes as many points as there are pixels. NonMaxSuppression
drops a box whose IoU with a kept box is above the threshold, and equal scores keep their order.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table for `torch.onnx.export`; torchvision and onnxscript are installed."""
    from onnxscript import opset18 as op

    def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        # One class of one image: (1, N, 4) and (1, 1, N). Which corner is first does not matter.
        found = op.NonMaxSuppression(
            op.Unsqueeze(boxes, [0]), op.Unsqueeze(scores, [0, 1]), [2**31 - 1], [iou_threshold])
        return op.Squeeze(op.Slice(found, [2], [3], [1]), [1])

    def roi_align(input: Any, rois: Any, spatial_scale: float, pooled_height: int,
                  pooled_width: int, sampling_ratio: int, aligned: bool) -> Any:
        image = op.Cast(op.Squeeze(op.Slice(rois, [0], [1], [1]), [1]), to=7)
        return op.RoiAlign(
            input, op.Slice(rois, [1], [5], [1]), image, spatial_scale=spatial_scale,
            output_height=pooled_height, output_width=pooled_width,
            sampling_ratio=max(sampling_ratio, 0), mode='avg',
            coordinate_transformation_mode='half_pixel' if aligned else 'output_half_pixel')

    vision = torch.ops.torchvision
    return {vision.nms.default: nms, vision.roi_align.default: roi_align}
