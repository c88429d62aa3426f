"""Non-maximum suppression: hard (torchvision's kernel), soft and matching (NumPy, on the CPU).

mmcv passes every threshold to its kernels as a float32, and compares the threshold with a float32
IoU. Here the threshold is rounded to the dtype of the boxes before the comparison.
"""

from __future__ import annotations

from collections.abc import Callable

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
        offset: 0, or 1 for the old convention in which width = x2 - x1 + 1. torchvision does not
            know that convention; it is computed on the CPU.

    Returns:
        Tensor: (K,) int64 on the device of `boxes`.
    """
    if boxes.numel() == 0:
        return torch.empty(0, dtype=torch.long, device=boxes.device)
    # Scores of a higher precision do not raise that of the boxes: the IoU stays mmcv's.
    (boxes,) = torchvision_ops.full_precision(boxes.detach())
    scores = scores.detach().to(boxes)
    # The kernel of the CPU takes a double, and compares the IoU with it as one.
    threshold = boxes.new_tensor(iou_threshold, device='cpu').item()
    if not offset:
        return torchvision_ops.load().nms(boxes, scores, threshold)
    groups = _groups(boxes, scores, offset, lambda iou: iou > threshold)
    return torch.tensor([group[0] for group in groups], dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, *, iou_threshold: float) -> list[list[int]]:
    """The kept boxes by falling score, each followed by those that it suppresses.

    Args:
        dets: (N, 5) as x1, y1, x2, y2, score, on the CPU.
        iou_threshold: a box goes to a kept one when their IoU is this or more (unlike in `nms`).

    Returns:
        list: one list of indices for each kept box, in the order of the scores.
    """
    (dets,) = torchvision_ops.full_precision(dets.detach())
    threshold = dets.new_tensor(iou_threshold).item()
    return _groups(dets[:, :4], dets[:, 4], 0, lambda iou: iou >= threshold)


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
    """Soft-NMS (Bodla et al. 2017): an overlap lowers the score of a box instead of removing it.

    As in mmcv, the picked box is always kept, also below `min_score`. If an overlap lowers the
    score of a box below `min_score`, the last box moves into the place of this box. This rule fixes
    the order of equal scores.

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
    iou_threshold, min_score = np.float32(iou_threshold), np.float32(min_score)
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
        iou = _iou(corners, index, rest, offset)
        rest_scores = rest_scores * _decay(iou, iou_threshold, sigma, method)
        keep = _swap_out(rest_scores < min_score)
        rest, rest_scores = rest[keep], rest_scores[keep]
    kept = torch.tensor(picked, dtype=torch.long)
    dets[:len(picked), :4] = boxes.detach().cpu()[kept].to(dets)
    dets[:len(picked), 4] = torch.tensor(picked_scores).to(dets)
    return kept


def _groups(
    boxes: Tensor, scores: Tensor, offset: int, suppresses: Callable[[np.ndarray], np.ndarray]
) -> list[list[int]]:
    """Each kept box, followed by the boxes that it suppresses, as `suppresses` decides by IoU."""
    corners = boxes.cpu().numpy()
    rest = scores.sort(descending=True, stable=True).indices.cpu().numpy()
    groups = []
    while len(rest):
        kept, rest = rest[0], rest[1:]
        gone = suppresses(_iou(corners, kept, rest, offset))
        groups.append([int(kept), *rest[gone].tolist()])
        rest = rest[~gone]
    return groups


def _iou(corners: np.ndarray, one: int, others: np.ndarray, offset: int) -> np.ndarray:
    """IoU of a box with others, in the dtype of `corners` and mmcv's order of operations."""
    first, second = corners[one], corners[others]
    sides = np.minimum(first[2:], second[:, 2:]) - np.maximum(first[:2], second[:, :2]) + offset
    inter = np.prod(np.maximum(sides, 0), axis=1)
    area = np.prod(first[2:] - first[:2] + offset)
    areas = np.prod(second[:, 2:] - second[:, :2] + offset, axis=1)
    # 0 / 0 of two boxes without area is NaN, which is above no threshold.
    with np.errstate(divide='ignore', invalid='ignore'):
        return inter / (area + areas - inter)


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
