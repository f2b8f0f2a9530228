"""How wrong predictions are: focal losses for the class, L1 or GIoU for the box, and their sum over a batch.

Everything is computed for the whole batch at once, and the host never waits for the device. On a GPU such small
operations cost their launch, whatever their size, so gradients are written out where that saves many of them.
N images, M objects, A anchors, C classes.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odutils.anchors import Grid
from odutils.iou import paired_iou
from odutils.matching import IGNORED, match_atss, match_iou, match_points
from odutils.points import PointGrid


class FocalLoss(torch.autograd.Function):
    """Focal loss (Lin et al. 2017, eq. 5) with gamma 1, summed: -alpha_t (1 - p_t) log p_t over all that is counted.

    As in the article, no gradient flows through (1 - p_t), so the gradient is ±alpha_t (1 - p_t)². It is written out
    because a batch has millions of scores, and on a CPU time goes by the number of tensors made of them.
    """

    ALPHA = 0.25  # weight of a positive anchor's own class; 1 - ALPHA is that of all others

    @staticmethod
    def forward(ctx, logits: Tensor, column: Tensor, positive: Tensor, counted: Tensor, known: Tensor) -> Tensor:
        """logits: (N, A, C).   column: (N, A, 1) of the anchor's own class, if the anchor is `positive` (N, A, 1).

        counted: (N, A, 1) bool, False for ignored anchors.   known: (N, 1, C) bool, classes that are labelled.
        """
        p_t = logits.neg()  # its sigmoid is p_t where the target is 0; where it is 1, the sign changes
        own = p_t.gather(2, column)  # (N, A, 1)
        p_t.scatter_(2, column, torch.where(positive, -own, own))
        p_t.clamp_(min=-80).sigmoid_()  # sigmoid(-80) still has a logarithm in float32
        miss = (1 - p_t).mul_(counted).mul_(known)  # (N, A, C)
        ctx.save_for_backward(miss, column, positive)
        loss = p_t.log_().mul_(miss)
        own_loss = torch.where(positive, loss.gather(2, column), 0).sum()
        return (FocalLoss.ALPHA - 1) * (loss.sum() - own_loss) - FocalLoss.ALPHA * own_loss

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple:
        miss, column, positive = ctx.saved_tensors
        gradient = (miss * ((1 - FocalLoss.ALPHA) * scale)).mul_(miss)  # (N, A, C)
        own = gradient.gather(2, column)  # (N, A, 1)
        own = torch.where(positive, own * (FocalLoss.ALPHA / (FocalLoss.ALPHA - 1)), own)
        return gradient.scatter_(2, column, own), None, None, None, None


def quality_focal_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Quality focal loss with beta 2 (Li et al. 2020, eq. 4): (p - target)² × the binary cross-entropy of both.

    logits, targets: same shape, and the result's. A target is the IoU that the predicted box reaches, 0…1.
    """
    return QualityFocalLoss.apply(logits, targets)


class QualityFocalLoss(torch.autograd.Function):
    """See `quality_focal_loss`. Its gradient is (p - target) × ((p - target)² + 2 p (1 - p) × cross-entropy)."""

    @staticmethod
    def forward(ctx, logits: Tensor, targets: Tensor) -> Tensor:
        p = logits.sigmoid()
        error = p - targets
        weight = error.square()
        entropy = F.softplus(logits).addcmul_(logits, targets, value=-1)
        slope = p.addcmul_(p, p, value=-1).mul_(entropy)  # p (1 - p) × cross-entropy
        ctx.save_for_backward(torch.add(weight, slope, alpha=2).mul_(error))
        return weight.mul_(entropy)

    @staticmethod
    def backward(ctx, scale: Tensor) -> tuple:
        (gradient,) = ctx.saved_tensors
        return gradient * scale, None


class Matched(NamedTuple):
    """What label assignment says about every anchor of a batch: the ground truth that predictions are compared with."""

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
    kind "article": focal loss summed over all known classes and divided by C, + the mean absolute error of each image's
    matched boxes, summed over images.
    matcher: the label assignment; by default `match_points` for a grid of points, and for one of anchors `match_atss`
    with "quality" and `match_iou` with "article".

    `loss.to(device)` moves the grid. After a call, `parts` (2,) holds the class and the box loss, detached. Where
    several processes share a batch, `reduce_total` adds up their sums of targets (scalars), see `processes.Share`.
    """

    def __init__(self, grid: Grid, kind: str = "quality", matcher: Callable | None = None):
        super().__init__()
        self.kind = kind
        usual = match_points if isinstance(grid, PointGrid) else match_atss if kind == "quality" else match_iou
        self.matcher = matcher or usual
        self.reduce_total: Callable[[Tensor], Tensor] = lambda total: total
        self.parts = torch.zeros(2)
        self.built_grid = grid
        for field in fields(grid):
            if isinstance(tensor := getattr(grid, field.name), Tensor):
                self.register_buffer(field.name, tensor, persistent=False)  # (A, …)

    @property
    def grid(self) -> Grid:
        """The anchors or points, on the loss's device."""
        if self.built_grid.steps is not self.steps:  # the buffers have been moved
            self.built_grid = replace(self.built_grid, **dict(self.named_buffers()))
        return self.built_grid

    def forward(self, predictions: tuple[Tensor, Tensor], boxes: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """predictions: (N, A, C), (N, A, 4).   boxes: (N, M, 4).   labels: (N, M).   known: (N, C) bool.   A scalar."""
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
        iou = iou.detach() * matched.positive
        divisor = self.divisor(iou.sum())
        targets = torch.zeros_like(logits).scatter_(2, matched.columns[..., None], iou[..., None])  # (N, A, C)
        # A positive of class horse is no elephant, whether or not its image's source labels elephants.
        counted = matched.counted[..., None] & (matched.known[:, None] | matched.positive[..., None])  # (N, A, C)
        class_loss = quality_focal_loss(logits, targets) * counted  # (N, A, C)
        box_loss = (1 - giou) * matched.positive  # (N, A)
        return class_loss.sum() / divisor, 2 * box_loss.sum() / divisor

    def article_loss(self, logits: Tensor, predicted: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        """Arguments and result as for `quality_loss`."""
        columns, positive, counted = (t[..., None] for t in (matched.columns, matched.positive, matched.counted))
        class_loss = FocalLoss.apply(logits, columns, positive, counted, matched.known[:, None]) / logits.shape[-1]
        error = (predicted - matched.boxes).abs().mean(dim=-1) * matched.positive  # (N, A)
        return class_loss, (error.sum(dim=1) / matched.positive.sum(dim=1).clamp(min=1)).sum()

    def divisor(self, total: Tensor) -> Tensor:
        """The joint batch's sum of targets, at least 1: what a loss that is summed over anchors is divided by."""
        return self.reduce_total(total).clamp(min=1)
