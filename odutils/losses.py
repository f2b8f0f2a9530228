"""How wrong a prediction is: focal losses for the class, L1 or GIoU for the box, and their sum over a batch.

Everything is computed for the whole batch at once and stays on the device. N images, M objects, A anchors, C classes.
"""

from collections.abc import Callable

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


class DetectionLoss(nn.Module):
    """The loss of a batch: `loss(predictions, boxes, labels, known)`.

    kind "quality": quality focal loss + 2 × GIoU loss, both divided by the sum of the batch's targets (at least 1), so
    that neither a large batch nor a crowded image weighs more than its objects. Classes that an image's source does
    not label (`known`) count only at anchors that answer for an object: these are known not to be anything else.
    kind "article": focal loss summed over everything that `known` covers and divided by C, + the mean absolute error of
    each image's matched boxes, summed over images.

    After a call, `parts` (2,) holds the class and the box share, detached. `normalise` turns the sum of targets into
    the divisor; training with several processes replaces it (see `callbacks.Share`).
    """

    def __init__(self, grid: AnchorGrid, kind: str = "quality", match: Callable | None = None):
        super().__init__()
        self.grid, self.kind = grid, kind
        self.match = match or (match_atss if kind == "quality" else match_iou)
        self.normalise: Callable[[Tensor], Tensor] = lambda total: total.clamp(min=1)
        self.parts = torch.zeros(2)

    def forward(self, predictions: tuple[Tensor, Tensor], boxes: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """predictions: (N, A, C), (N, A, 4).   boxes: (N, M, 4).   labels: (N, M).   known: (N, C) bool.

        Returns a scalar.
        """
        logits, codes = (prediction.float() for prediction in predictions)
        if not boxes.shape[1]:  # no image has an object: one row of padding keeps every formula below as it is
            boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))  # (N, 1, 4), (N, 1)
        match = self.match(self.grid, boxes, labels)  # (N, A)
        wanted = boxes.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4))  # (N, A, 4)
        column = (labels.gather(1, match.clamp(min=0)) - 1).clamp(min=0)  # (N, A) of the class, if there is an object
        loss = self.quality_loss if self.kind == "quality" else self.article_loss
        predicted = self.grid.decode(codes)  # (N, A, 4)
        class_loss, box_loss = loss(logits, predicted, wanted, match >= 0, column, match != IGNORED, known)
        self.parts = torch.stack([class_loss, box_loss]).detach()
        return class_loss + box_loss

    def quality_loss(self, logits, predicted, wanted, found, column, counted, known) -> tuple[Tensor, Tensor]:
        iou, giou = paired_iou(predicted, wanted)  # (N, A) each
        iou = torch.where(found, iou.detach(), 0)
        normaliser = self.normalise(iou.sum())
        targets = torch.zeros_like(logits).scatter_(2, column[..., None], iou[..., None])  # (N, A, C)
        # An anchor that answers for a horse answers for no elephant, whether or not its source labels elephants.
        counted = counted[..., None] & (known[:, None] | found[..., None])  # (N, A, C)
        class_loss = quality_focal_loss(logits, targets) * counted  # (N, A, C)
        return class_loss.sum() / normaliser, 2 * torch.where(found, 1 - giou, 0).sum() / normaliser

    def article_loss(self, logits, predicted, wanted, found, column, counted, known) -> tuple[Tensor, Tensor]:
        own = (column[..., None], found[..., None], counted[..., None])  # (N, A, 1) each
        class_loss = FocalLoss.apply(logits, *own, known[:, None]) / logits.shape[-1]
        error = torch.where(found, (predicted - wanted).abs().mean(dim=-1), 0)  # (N, A)
        return class_loss, (error.sum(dim=1) / found.sum(dim=1).clamp(min=1)).sum()


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
