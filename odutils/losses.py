"""How wrong a prediction is: focal losses for the class, L1 or GIoU for the box, and their sum over a batch.

Everything is computed for the whole batch at once and stays on the device. N images, M objects, A anchors, C classes.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odutils.anchors import AnchorGrid
from odutils.matching import IGNORED, match_atss, match_iou


class FocalLoss(torch.autograd.Function):
    """Focal loss (Lin et al. 2017, eq. 5) with gamma 1, summed: -alpha_t (1 - p_t) log p_t over all answers that count.

    As in the article, no gradient flows through (1 - p_t), so the gradient is ±alpha_t (1 - p_t)². It is written out
    because a batch has millions of answers, and time goes by the number of tensors made of them.
    """

    ALPHA = 0.25  # weight of the anchor's own class; 1 - ALPHA that of all others

    @staticmethod
    def forward(ctx, logits: Tensor, column: Tensor, found: Tensor, counted: Tensor, known: Tensor) -> Tensor:
        """logits: (N, A, C).   column: (N, A, 1) of the anchor's own class, if it is `found` (N, A, 1).

        counted: (N, A, 1) and known: (N, 1, C), both bool: what is neither right nor wrong does not count.
        """
        right = logits.neg()  # p_t = sigmoid(-logit) where the class is wrong, sigmoid(logit) for the anchor's own
        own = right.gather(2, column)  # (N, A, 1)
        right.scatter_(2, column, torch.where(found, -own, own))
        right.clamp_(min=-80).sigmoid_()  # sigmoid(-80) still has a logarithm in float32
        miss = (1 - right).mul_(counted).mul_(known)  # (N, A, C)
        ctx.save_for_backward(miss, column, found)
        loss = right.log_().mul_(miss)
        own_loss = torch.where(found, loss.gather(2, column), 0).sum()
        return (FocalLoss.ALPHA - 1) * (loss.sum() - own_loss) - FocalLoss.ALPHA * own_loss

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple:
        miss, column, found = ctx.saved_tensors
        gradient = (miss * ((1 - FocalLoss.ALPHA) * scale)).mul_(miss)  # (N, A, C)
        own = gradient.gather(2, column)  # (N, A, 1)
        own = torch.where(found, own * (FocalLoss.ALPHA / (FocalLoss.ALPHA - 1)), own)
        return gradient.scatter_(2, column, own), None, None, None, None


def quality_focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, eq. 4): the target is the IoU that the predicted box reaches, 0…1.

    logits, targets: same shape, and the result's.
    """
    miss = (logits.sigmoid() - targets).abs()
    return miss**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


class Matched(NamedTuple):
    """What label assignment says about every anchor of a batch; the loss's two parts compare predictions with it."""

    boxes: Tensor  # (N, A, 4) xyxy: the ground-truth box of a positive anchor; elsewhere without meaning
    columns: Tensor  # (N, A) int64: column of a positive anchor's class in the logits; elsewhere without meaning
    positive: Tensor  # (N, A) bool: the anchor is assigned to an object
    counted: Tensor  # (N, A) bool: positive or negative; False for ignored anchors
    known: Tensor  # (N, C) bool: classes that the image's source labels


class DetectionLoss(nn.Module):
    """The loss of a batch: `loss(predictions, boxes, labels, known)`.

    kind "quality": quality focal loss + 2 × GIoU loss, both divided by the sum of the batch's targets (at least 1), so
    that neither a large batch nor a crowded image weighs more than its objects. Classes that an image's source does
    not label (`known`) count at positive anchors only: these have a class, so they are known to have no other.
    kind "article": focal loss summed over everything that `known` covers and divided by C, + the mean absolute error of
    each image's matched boxes, summed over images.
    matcher: assigns anchors to objects, as `match_atss` does (default of "quality") and `match_iou` (of "article").

    The grid's tensors are buffers, so `loss.to(device)` moves them. After a call, `parts` (2,) holds the class and the
    box share, detached. `reduce_total` is applied to the sum of targets (a scalar) before it becomes the divisor: where
    several processes share a batch, it adds their sums (see `callbacks.Share`); by default it returns its argument.
    """

    def __init__(self, grid: AnchorGrid, kind: str = "quality", matcher: Callable | None = None):
        super().__init__()
        self.kind = kind
        self.matcher = matcher or (match_atss if kind == "quality" else match_iou)
        self.reduce_total: Callable[[Tensor], Tensor] = lambda total: total
        self.parts = torch.zeros(2)
        self.built_grid = grid
        self.register_buffer("anchors", grid.boxes, persistent=False)  # (A, 4)
        self.register_buffer("steps", grid.steps, persistent=False)  # (A, 2)

    @property
    def grid(self) -> AnchorGrid:
        """The anchors, on the loss's device."""
        if self.built_grid.boxes is not self.anchors:  # the buffers have been moved
            self.built_grid = replace(self.built_grid, boxes=self.anchors, steps=self.steps)
        return self.built_grid

    def forward(self, predictions: tuple[Tensor, Tensor], boxes: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """predictions: (N, A, C), (N, A, 4).   boxes: (N, M, 4).   labels: (N, M).   known: (N, C) bool.

        Returns a scalar.
        """
        logits, codes = (prediction.float() for prediction in predictions)
        if not boxes.shape[1]:  # no image has an object: one row of padding keeps every formula below as it is
            boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))  # (N, 1, 4), (N, 1)
        matches = self.matcher(self.grid, boxes, labels)  # (N, A)
        index = matches.clamp(min=0)
        matched = Matched(
            boxes=boxes.gather(1, index[..., None].expand(-1, -1, 4)),
            columns=(labels.gather(1, index) - 1).clamp(min=0),
            positive=matches >= 0,
            counted=matches != IGNORED,
            known=known,
        )
        loss = self.quality_loss if self.kind == "quality" else self.article_loss
        class_loss, box_loss = loss(logits, self.grid.decode(codes), matched)
        self.parts = torch.stack([class_loss, box_loss]).detach()
        return class_loss + box_loss

    def quality_loss(self, logits: Tensor, predicted: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        """logits: (N, A, C).   predicted: (N, A, 4) decoded boxes.   Returns class and box loss, scalars."""
        iou, giou = paired_iou(predicted, matched.boxes)  # (N, A) each
        iou = torch.where(matched.positive, iou.detach(), 0)
        divisor = self.divisor(iou.sum())
        targets = torch.zeros_like(logits).scatter_(2, matched.columns[..., None], iou[..., None])  # (N, A, C)
        # A positive of class horse is no elephant, whether or not its image's source labels elephants.
        counted = matched.counted[..., None] & (matched.known[:, None] | matched.positive[..., None])  # (N, A, C)
        class_loss = quality_focal_loss(logits, targets) * counted  # (N, A, C)
        return class_loss.sum() / divisor, 2 * torch.where(matched.positive, 1 - giou, 0).sum() / divisor

    def article_loss(self, logits: Tensor, predicted: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        """Arguments and result as for `quality_loss`."""
        columns, positive, counted = (t[..., None] for t in (matched.columns, matched.positive, matched.counted))
        class_loss = FocalLoss.apply(logits, columns, positive, counted, matched.known[:, None]) / logits.shape[-1]
        error = torch.where(matched.positive, (predicted - matched.boxes).abs().mean(dim=-1), 0)  # (N, A)
        return class_loss, (error.sum(dim=1) / matched.positive.sum(dim=1).clamp(min=1)).sum()

    def divisor(self, total: Tensor) -> Tensor:
        """What a loss summed over anchors is divided by: the joint batch's sum of targets, at least 1."""
        return self.reduce_total(total).clamp(min=1)


def paired_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, algorithm 1) of boxes one by one: (…, 4), (…, 4) -> (…), (…).

    (`torchvision.ops.generalized_box_iou_loss` picks by a mask, for which the host has to wait for the device.)
    """
    left, top, right, bottom = first.unbind(dim=-1)
    other_left, other_top, other_right, other_bottom = second.unbind(dim=-1)
    width = (torch.minimum(right, other_right) - torch.maximum(left, other_left)).clamp(min=0)
    height = (torch.minimum(bottom, other_bottom) - torch.maximum(top, other_top)).clamp(min=0)
    hull_width = torch.maximum(right, other_right) - torch.minimum(left, other_left)
    hull_height = torch.maximum(bottom, other_bottom) - torch.minimum(top, other_top)
    shared, hull = width * height, (hull_width * hull_height).clamp(min=1e-9)
    union = (right - left) * (bottom - top) + (other_right - other_left) * (other_bottom - other_top) - shared
    iou = shared / union.clamp(min=1e-9)
    return iou, iou - (hull - union) / hull
