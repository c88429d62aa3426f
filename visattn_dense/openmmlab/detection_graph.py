"""RetinaNet, Faster, Mask and Cascade R-CNN of mmdet as one function of tensors, for exporters.

    boxes, scores, labels(, masks) = DetectionGraph(model, card)(image, content)

mmdet's own `predict` works on lists of data samples and asks in Python how many boxes there are,
which no exporter can follow. The graph uses the networks and the test settings of a detector, and
computes the steps between the networks again, in mmdet's order, so that the same boxes come out:

    anchors -> the best of each level -> boxes, clipped to the picture -> NMS
    (two stages) -> RoIAlign on the level of each box -> scores and boxes -> NMS
    (masks) -> RoIAlign -> masks of 28x28

The number of boxes depends on the picture. NMS and RoIAlign are the operators of torchvision.
"""
from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from visattn_dense.errors import UserError
from visattn_dense.openmmlab.compat.kernels import torchvision_ops
from visattn_dense.openmmlab.half import compute_in_half
from visattn_dense.predict.card import Card

# A candidate that fills a level with fewer than `nms_pre` anchors; scores are 0 or more.
_NOTHING = -1.


class DetectionGraph(nn.Module):
    """What the file of a detector computes.

    Args:
        model: mmdet's detector; it is copied.
        card: of the file.
        half: compute backbone and neck in float16; the heads, whose boxes need more digits, in
            float32.

    Raises:
        UserError: the detector has a part that the graph does not know.
    """

    def __init__(self, model: nn.Module, card: Card, half: bool = False) -> None:
        super().__init__()
        check_detector(model)
        torchvision_ops.load()
        self.model = deepcopy(model).eval()
        if getattr(self.model, 'with_rpn', False):
            _without_batch_norms(self.model.roi_head)
        self.dtype = torch.float16 if half else torch.float32
        if half:
            compute_in_half(self.model.backbone)
            compute_in_half(self.model.neck)
        self.pre = card.pre_and_post
        self.register_buffer('mean', torch.tensor(card.mean)[:, None, None], persistent=False)
        self.register_buffer('std', torch.tensor(card.std)[:, None, None], persistent=False)

    def forward(self, image: Tensor, content: Tensor) -> tuple[Tensor, ...]:
        """Find the objects.

        Args:
            image: (1, 3, H, W) float32, normalised; or (1, H, W, 3) uint8 if the file prepares.
            content: (2,) int64, height and width of the part of the image that is no padding.

        Returns:
            boxes (N, 4) as x1, y1, x2, y2 in pixels of the image, scores (N,), labels (N,) int64,
            those of high scores first; of an instance segmentor also masks (N, h, w): the
            probability of the object inside its box.
        """
        if self.pre:
            image = (image.permute(0, 3, 1, 2).float() - self.mean) / self.std
        maps = [level.float() for level in self.model.extract_feat(image.to(self.dtype))]
        limits = content.flip(0).repeat(2).float()
        if not getattr(self.model, 'with_rpn', False):
            return _dense(self.model.bbox_head, maps, limits)
        roi = self.model.roi_head
        boxes, _, _ = _dense(self.model.rpn_head, maps, limits, proposals=True)
        if isinstance(roi.bbox_head, nn.ModuleList):
            boxes, scores, labels = _cascade(roi, maps, boxes, limits)
        else:
            boxes, scores, labels = _second_stage(
                roi.bbox_head, boxes, limits, roi.test_cfg,
                *_box_branch(roi.bbox_head, roi.bbox_roi_extractor, maps, boxes))
        if not roi.with_mask:
            return boxes, scores, labels
        return boxes, scores, labels, _masks(_several(roi.mask_head),
                                             _several(roi.mask_roi_extractor), maps, boxes, labels)


class Affine(nn.Module):
    """A BatchNorm in evaluation mode: torch's own asks if there is a box.

    Args:
        norm: the BatchNorm, with running statistics.
    """

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        factor = (norm.running_var + norm.eps).rsqrt()
        factor = factor if norm.weight is None else factor * norm.weight.detach()
        self.register_buffer('mean', norm.running_mean[:, None, None].clone())
        self.register_buffer('factor', factor[:, None, None])
        shift = torch.zeros_like(norm.running_mean) if norm.bias is None else norm.bias.detach()
        self.register_buffer('shift', shift[:, None, None].clone())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) * self.factor + self.shift


def _without_batch_norms(model: nn.Module) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.batchnorm._BatchNorm):
                setattr(parent, name, Affine(child))


def _dense(head: nn.Module, maps: Sequence[Tensor], limits: Tensor, proposals: bool = False
           ) -> tuple[Tensor, Tensor, Tensor]:
    """The boxes of a head that looks at every place.

    Args:
        head: RetinaNet's head, or the RPN.
        limits: (4,), the largest x, y, x, y of a box.
        proposals: NMS is done inside each level, not inside each class, and any score will do.

    Returns:
        boxes (N, 4), scores (N,), and labels (N,): of proposals, the level.
    """
    cfg = head.test_cfg
    scores, deltas = head(maps)
    anchors = head.prior_generator.grid_priors([level.shape[-2:] for level in scores],
                                               dtype=scores[0].dtype, device=scores[0].device)
    most, classes = cfg.nms_pre, head.cls_out_channels
    found: list[tuple[Tensor, ...]] = []
    for level, (score, delta, anchor) in enumerate(zip(scores, deltas, anchors, strict=True)):
        score = score[0].permute(1, 2, 0).reshape(-1, classes)
        score = score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[:, :-1]
        best, index = torch.cat([score.flatten(), score.new_full((most,), _NOTHING)]).topk(most)
        # A filling candidate has the last anchor; its score removes it.
        columns = score.shape[1]
        row = torch.div(index, columns, rounding_mode='floor').clamp(max=anchor.shape[0] - 1)
        label = torch.full_like(index, level) if proposals else index % columns
        found.append((delta[0].permute(1, 2, 0).reshape(-1, 4)[row], anchor[row], best, label))
    delta, anchor, score, label = (torch.cat(parts) for parts in zip(*found, strict=True))
    boxes = _decode(head.bbox_coder, anchor, delta, limits)
    valid = score > (_NOTHING if proposals else max(cfg.get('score_thr', 0.), 0.))
    if cfg.get('min_bbox_size', -1) >= 0:
        valid &= ((boxes[:, 2:] - boxes[:, :2]) > cfg.min_bbox_size).all(1)
    return _suppress(boxes, score, label, valid, cfg)


def _decode(coder: Any, boxes: Tensor, deltas: Tensor, limits: Tensor) -> Tensor:
    """Boxes (N, 4), moved by deltas (N, 4) of a network; mmdet's delta2bbox."""
    deltas = deltas * deltas.new_tensor(coder.stds) + deltas.new_tensor(coder.means)
    most = abs(math.log(16 / 1000))
    centre, size = (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2]
    centre = centre + size * deltas[:, :2]
    size = size * deltas[:, 2:].clamp(-most, most).exp()
    boxes = torch.cat([centre - size * 0.5, centre + size * 0.5], 1)
    return torch.minimum(boxes.clamp(min=0), limits) if coder.clip_border else boxes


def _suppress(boxes: Tensor, scores: Tensor, labels: Tensor, valid: Tensor, cfg: Any
              ) -> tuple[Tensor, Tensor, Tensor]:
    """The valid boxes after NMS inside each label, those of high scores first.

    Boxes of each label are moved to a place of their own, as mmcv's batched_nms does.
    """
    kept = valid.nonzero()[:, 0]
    boxes, scores, labels = boxes[kept], scores[kept], labels[kept]
    step = torch.cat([boxes.flatten(), boxes.new_zeros(1)]).max() + 1
    kept = torch.ops.torchvision.nms(boxes + (labels * step)[:, None], scores,
                                     cfg.nms.iou_threshold)
    if cfg.max_per_img > 0:
        # A slice would ask how many boxes there are.
        kept = kept[(torch.arange(kept.shape[0], device=kept.device) < cfg.max_per_img
                     ).nonzero()[:, 0]]
        # An exporter asserts that sizes made of this one fit into 64 bits.
        torch._check(kept.shape[0] <= cfg.max_per_img)
    return boxes[kept], scores[kept], labels[kept]


def _pooled(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """RoIAlign of each box on its level of the pyramid: (N, C, h, w)."""
    count = extractor.num_inputs
    extent = ((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sqrt()
    levels = (extent / extractor.finest_scale + 1e-6).log2().floor().clamp(0, count - 1)
    rois = torch.cat([boxes.new_zeros(boxes.shape[0], 1), boxes], 1)
    size = extractor.roi_layers[0].output_size
    pooled = boxes.new_zeros(boxes.shape[0], extractor.out_channels, *size)
    for level, layer in enumerate(extractor.roi_layers):
        chosen = (levels == level).nonzero()[:, 0]
        part = torch.ops.torchvision.roi_align(
            maps[level], rois[chosen], layer.spatial_scale, *size, layer.sampling_ratio,
            layer.aligned)
        pooled = pooled.index_put((chosen,), part)
    return pooled


def _box_branch(head: nn.Module, extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor
                ) -> tuple[Tensor, Tensor]:
    """Logits (N, classes + 1) and deltas (N, 4 or 4 classes) of boxes."""
    return head(_pooled(extractor, maps[:extractor.num_inputs], boxes))


def _second_stage(head: nn.Module, boxes: Tensor, limits: Tensor, cfg: Any, logits: Tensor,
                  deltas: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes, scores and labels from the second stage's logits and deltas."""
    classes = head.num_classes
    scores = logits.softmax(-1)[:, :-1]
    if not head.reg_class_agnostic:
        boxes = boxes.repeat_interleave(classes, 0)
    boxes = _decode(head.bbox_coder, boxes, deltas.reshape(-1, 4), limits)
    if head.reg_class_agnostic:
        boxes = boxes[:, None].expand(-1, classes, 4).reshape(-1, 4)
    labels = torch.arange(classes, device=boxes.device).expand_as(scores).reshape(-1)
    scores = scores.reshape(-1)
    return _suppress(boxes, scores, labels, scores > cfg.score_thr, cfg)


def _cascade(roi: nn.Module, maps: Sequence[Tensor], boxes: Tensor, limits: Tensor
             ) -> tuple[Tensor, Tensor, Tensor]:
    """Each stage moves the boxes of the stage before; the logits of all stages are averaged."""
    total, last = 0., roi.num_stages - 1
    for stage, (head, extractor) in enumerate(zip(roi.bbox_head, roi.bbox_roi_extractor,
                                                  strict=True)):
        logits, deltas = _box_branch(head, extractor, maps, boxes)
        total = total + logits
        if stage < last:
            if not head.reg_class_agnostic:
                label = logits[:, :-1].argmax(1)
                deltas = deltas.reshape(-1, head.num_classes, 4).gather(
                    1, label[:, None, None].expand(-1, 1, 4))[:, 0]
            boxes = _decode(head.bbox_coder, boxes, deltas, limits)
    return _second_stage(roi.bbox_head[-1], boxes, limits, roi.test_cfg, total / roi.num_stages,
                         deltas)


def _masks(heads: Sequence[nn.Module], extractors: Sequence[nn.Module], maps: Sequence[Tensor],
           boxes: Tensor, labels: Tensor) -> Tensor:
    """(N, h, w) probabilities: those of the box's own class, averaged over the stages."""
    total = 0.
    for head, extractor in zip(heads, extractors, strict=True):
        logits = head(_pooled(extractor, maps[:extractor.num_inputs], boxes))
        total = total + logits.sigmoid()
    total = total / len(heads)
    if heads[-1].class_agnostic:
        return total[:, 0]
    index = labels[:, None, None, None].expand(-1, 1, *total.shape[2:])
    return total.gather(1, index)[:, 0]


def check_detector(model: nn.Module) -> None:
    """Whether the graph computes what a detector computes.

    Raises:
        UserError: naming the first part that the graph does not know.
    """
    from mmdet.models import dense_heads, detectors, roi_heads
    if isinstance(model, detectors.TwoStageDetector):
        roi = model.roi_head
        _expect(model.rpn_head, dense_heads.RPNHead)
        _expect(roi, roi_heads.StandardRoIHead, roi_heads.CascadeRoIHead)
        dense, masks = model.rpn_head, _several(roi.mask_head) if roi.with_mask else []
        for head in _several(roi.bbox_head):
            _expect(head, roi_heads.ConvFCBBoxHead, roi_heads.Shared2FCBBoxHead,
                    roi_heads.Shared4Conv1FCBBoxHead, roi_heads.BBoxHead)
            _expect_coder(head)
            _expect_that(head.with_reg and not head.custom_activation, head,
                         'a loss with an activation of its own, or classes without boxes')
        for head in masks:
            _expect(head, roi_heads.FCNMaskHead)
        for extractor in (*_several(roi.bbox_roi_extractor),
                          *(_several(roi.mask_roi_extractor) if masks else ())):
            _expect(extractor, roi_heads.SingleRoIExtractor)
            _expect_that(all(type(layer).__name__ == 'RoIAlign' and layer.pool_mode == 'avg'
                             and not layer.use_torchvision for layer in extractor.roi_layers),
                         extractor, 'layers other than RoIAlign with pool_mode avg')
        _expect_nms(roi.test_cfg, roi)
        _expect_that(not masks or roi.test_cfg.mask_thr_binary >= 0, roi, 'mask_thr_binary < 0')
    else:
        _expect_that(isinstance(model, detectors.SingleStageDetector), model,
                     'neither one stage nor two')
        dense = model.bbox_head
        _expect(dense, dense_heads.RetinaHead)
    _expect_that(model.with_neck, model, 'no neck')
    _expect_coder(dense)
    _expect_nms(dense.test_cfg, dense)
    _expect_that(dense.test_cfg.get('nms_pre', -1) > 0, dense, 'no limit nms_pre')
    _expect_that(not getattr(dense.loss_cls, 'custom_cls_channels', False), dense,
                 'a loss with an activation of its own')


def _several(part: nn.Module) -> Sequence[nn.Module]:
    return part if isinstance(part, nn.ModuleList) else [part]


def _expect(part: nn.Module, *types: type) -> None:
    # A subclass may decide otherwise.
    _expect_that(type(part) in types, part,
                 f'none of {", ".join(sorted(kind.__name__ for kind in types))}')


def _expect_coder(head: nn.Module) -> None:
    coder = head.bbox_coder
    _expect_that(type(coder).__name__ == 'DeltaXYWHBBoxCoder' and not coder.add_ctr_clamp, head,
                 f'the box coder {type(coder).__name__}')


def _expect_nms(cfg: Any, part: nn.Module) -> None:
    nms = dict(cfg.nms)
    _expect_that(nms.pop('type', 'nms') == 'nms' and set(nms) <= {'iou_threshold', 'split_thr'},
                 part, f'nms={dict(cfg.nms)}')


def _expect_that(holds: bool, part: nn.Module, what: str) -> None:
    if not holds:
        raise UserError(
            f'the export knows RetinaNet, Faster, Mask and Cascade R-CNN as mmdet has them. The '
            f'{type(part).__name__} of this detector has something else: {what}. Run this '
            'detector with visattn_dense.Predictor')
