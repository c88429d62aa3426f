"""Non-maximum suppression, hard (torchvision's kernel) and soft (NumPy, as mmcv's runs on CPU)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from visattn_dense.openmmlab.compat.kernels import torchvision_ops


def nms(boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes, by falling score; equal scores keep their order.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2; any floating dtype, compared in float32 or float64.
        scores: (N,).
        iou_threshold: a box goes when its IoU with a kept one is *above* this.
        offset: 0, or 1 for the old convention in which width = x2 - x1 + 1.

    Returns:
        Tensor: (K,) int64 on the device of `boxes`.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    boxes, scores = torchvision_ops.full_precision(boxes.detach(), scores.detach())
    if offset:
        # width and height with "+ 1" are those of a box whose far corner lies one pixel further.
        boxes = boxes + boxes.new_tensor([0.0, 0.0, offset, offset])
    return torchvision_ops.load().nms(boxes, scores, iou_threshold)


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    *,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Soft-NMS (Bodla et al. 2017): overlapping boxes lose score instead of life.

    As in mmcv, the box that is picked is always kept, also below `min_score`; boxes that fall
    below it by an overlap are dropped by moving the last one into their place, which fixes the
    order of equal scores.

    Args:
        boxes: (N, 4) as x1, y1, x2, y2. scores: (N,).
        dets: (N, 5) buffer on the CPU; the first K rows receive x1, y1, x2, y2 and the new score.
        iou_threshold: from which IoU on methods 0 and 1 act.
        sigma: width of the Gaussian of method 2.
        min_score: boxes whose lowered score is under this are dropped.
        method: 0 naive (score 0), 1 linear (1 - IoU), 2 Gaussian (exp(-IoU² / sigma)).
        offset: 0, or 1 for width = x2 - x1 + 1.

    Returns:
        Tensor: (K,) int64 indices in picking order.
    """
    corners = boxes.detach().cpu().float().numpy()
    rest_scores = scores.detach().cpu().float().numpy().copy()
    areas = np.prod(corners[:, 2:] - corners[:, :2] + offset, axis=1)
    rest = np.arange(len(corners))
    picked: list[int] = []
    picked_scores: list[float] = []
    while len(rest):
        best = int(np.argmax(rest_scores))
        index, score = rest[best], rest_scores[best]
        picked.append(int(index))
        picked_scores.append(float(score))
        # The head takes the place of the picked box, as mmcv's in-place swap does.
        rest[best], rest_scores[best] = rest[0], rest_scores[0]
        rest, rest_scores = rest[1:], rest_scores[1:]
        near = np.minimum(corners[index, 2:], corners[rest, 2:])
        far = np.maximum(corners[index, :2], corners[rest, :2])
        inter = np.prod(np.clip(near - far + offset, 0, None), axis=1)
        with np.errstate(divide='ignore', invalid='ignore'):
            iou = inter / (areas[index] + areas[rest] - inter)
        rest_scores = rest_scores * _decay(iou, iou_threshold, sigma, method)
        keep = _swap_out(rest_scores < min_score)
        rest, rest_scores = rest[keep], rest_scores[keep]
    kept = torch.tensor(picked, dtype=torch.long)
    dets[:len(picked), :4] = boxes.detach().cpu()[kept].to(dets)
    dets[:len(picked), 4] = torch.tensor(picked_scores).to(dets)
    return kept


def _decay(iou: np.ndarray, iou_threshold: float, sigma: float, method: int) -> np.ndarray:
    # Two boxes without area have no IoU (0 / 0) and leave each other alone.
    iou = np.nan_to_num(iou)
    if method == 2:
        return np.exp(-(iou * iou) / sigma).astype(np.float32)
    hit = iou >= iou_threshold
    lowered = np.zeros_like(iou) if method == 0 else 1 - iou
    return np.where(hit, lowered, 1).astype(np.float32)


def _swap_out(bad: np.ndarray) -> np.ndarray:
    """Positions that remain when each bad entry is overwritten by the last one, in order."""
    order = list(range(len(bad)))
    position = 0
    while position < len(order):
        if bad[order[position]]:
            order[position] = order[-1]
            order.pop()
        else:
            position += 1
    return np.array(order, dtype=np.intp)
