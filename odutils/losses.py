"""How wrong a prediction is: focal losses for the class, L1 or GIoU for the box, and their sum over a batch.

Everything is computed for the whole batch at once and stays on the device. N images, M objects, A anchors, C classes.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import generalized_box_iou_loss

from odutils.anchors import AnchorGrid
from odutils.matching import IGNORED, match_atss, match_iou


def focal_weight(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 1.0) -> Tensor:
    """How much focal loss listens to each answer: alpha_t (1 - p_t)^gamma (Lin et al. 2017, eq. 5), without gradient.

    logits, targets (0 or 1): same shape, and the result's. The article takes gamma 1 and no gradient, too.
    """
    miss = (logits.detach().sigmoid() - targets).abs_()  # 1 - p_t
    miss = miss if gamma == 1 else miss**gamma
    return miss.mul_(torch.where(targets > 0, alpha, 1 - alpha))


def quality_focal_loss(logits: Tensor, targets: Tensor, gamma: float = 2.0) -> Tensor:
    """Quality focal loss (Li et al. 2020, eq. 4): the target is the IoU that the predicted box reaches, 0…1.

    logits, targets: same shape, and the result's.
    """
    miss = (logits.sigmoid() - targets).abs()
    return miss**gamma * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def class_targets(match: Tensor, labels: Tensor, value: Tensor, classes: int) -> Tensor:
    """What each anchor should say: `value` in the column of its object's class, 0 elsewhere.

    match, value: (N, A).   labels: (N, M).   Returns (N, A, C) float32.
    """
    found = match >= 0  # (N, A)
    column = (labels.gather(1, match.clamp(min=0)) - 1).clamp(min=0)  # (N, A)
    targets = torch.zeros(*match.shape, classes, device=match.device)
    return targets.scatter_(2, column[..., None], torch.where(found, value, 0).float()[..., None])


class DetectionLoss(nn.Module):
    """The loss of a batch: `loss(predictions, boxes, labels, known)`.

    kind "quality": quality focal loss + 2 × GIoU loss, both divided by the sum of the batch's targets (at least 1), so that
    neither a large batch nor a crowded picture weighs more than its objects.   kind "article": focal loss summed over
    everything and divided by C, + the mean absolute error of each image's matched boxes, summed over images.

    After a call, `parts` (2,) holds the class and the box share, detached. `normalise` turns the sum of targets into the
    divisor; training with several processes replaces it (see training.py).
    """

    def __init__(self, grid: AnchorGrid, kind: str = "quality", match: Callable | None = None):
        super().__init__()
        self.grid, self.kind = grid, kind
        self.match = match or (match_atss if kind == "quality" else match_iou)
        self.normalise: Callable[[Tensor], Tensor] = lambda total: total.clamp(min=1)
        self.parts = torch.zeros(2)

    def forward(self, predictions: tuple[Tensor, Tensor], boxes: Tensor, labels: Tensor, known: Tensor) -> Tensor:
        """predictions: (N, A, C), (N, A, 4).   boxes: (N, M, 4).   labels: (N, M).   known: (N, C) bool.   Returns a scalar."""
        logits, codes = (prediction.float() for prediction in predictions)
        if not boxes.shape[1]:  # no image has an object: one row of padding keeps every formula below as it is
            boxes, labels = F.pad(boxes, (0, 0, 0, 1)), F.pad(labels, (0, 1))  # (N, 1, 4), (N, 1)
        match = self.match(self.grid, boxes, labels)  # (N, A)
        wanted = boxes.gather(1, match.clamp(min=0)[..., None].expand(-1, -1, 4))  # (N, A, 4)
        loss = self.quality_loss if self.kind == "quality" else self.article_loss
        class_loss, box_loss = loss(logits, self.grid.decode(codes), wanted, match, labels, known)
        self.parts = torch.stack([class_loss, box_loss]).detach()
        return class_loss + box_loss

    def quality_loss(self, logits, predicted, wanted, match, labels, known) -> tuple[Tensor, Tensor]:
        found = match >= 0  # (N, A)
        iou = paired_iou(predicted.detach(), wanted)  # (N, A)
        normaliser = self.normalise((iou * found).sum())
        targets = class_targets(match, labels, iou, logits.shape[-1])  # (N, A, C)
        class_loss = (quality_focal_loss(logits, targets) * counted(match, known)).sum() / normaliser
        giou_loss = generalized_box_iou_loss(predicted, wanted)  # (N, A)
        return class_loss, 2 * torch.where(found, giou_loss, 0).sum() / normaliser

    def article_loss(self, logits, predicted, wanted, match, labels, known) -> tuple[Tensor, Tensor]:
        found = match >= 0  # (N, A)
        targets = class_targets(match, labels, found, logits.shape[-1])  # (N, A, C)
        weight = focal_weight(logits, targets).mul_(counted(match, known))
        class_loss = F.binary_cross_entropy_with_logits(logits, targets, weight, reduction="sum") / logits.shape[-1]
        error = torch.where(found, (predicted - wanted).abs().mean(dim=-1), 0)  # (N, A)
        return class_loss, (error.sum(dim=1) / found.sum(dim=1).clamp(min=1)).sum()


def counted(match: Tensor, known: Tensor) -> Tensor:
    """Which answers can be called right or wrong (N, A, C): none on crowds, and only for classes that the image labels."""
    return (match != IGNORED)[..., None] & known[:, None]


def paired_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU of boxes one by one: (…, 4), (…, 4) -> (…)."""
    shared = torch.minimum(first[..., 2:], second[..., 2:]) - torch.maximum(first[..., :2], second[..., :2])
    shared = shared.clamp(min=0).prod(dim=-1)
    area = (first[..., 2:] - first[..., :2]).prod(dim=-1) + (second[..., 2:] - second[..., :2]).prod(dim=-1)
    return shared / (area - shared).clamp(min=1e-9)
