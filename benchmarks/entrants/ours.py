"""`pyramid`, whole and with one thing changed."""

from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from entrants.course import MEAN, SIZE, STD, Course, Endless, Pace, Run, examples, name_of
from odutils import callbacks
from odutils.anchors import AnchorGrid, pyramid_grid
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections
from odutils.inference import Predictor
from odutils.iou import paired_iou
from odutils.losses import DetectionLoss, Matched
from odutils.matching import assign, pairwise_iou
from odutils.model import Detector, GridOf, LiteBackbone, PyramidHead
from odutils.precision import MixedPrecision, half_precision
from odutils.settings import Settings
from odutils.training import make_learner


class HeadWithoutFusion(PyramidHead):
    """Every level sees its own map of the backbone only."""

    def fuse(self, features: list[Tensor]) -> list[Tensor]:
        maps = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        return [*maps, self.bottom_up[2](maps[2])]


class LossWithL1(DetectionLoss):
    """The mean distance of the four sides in cells instead of GIoU."""

    def quality_loss(self, logits: Tensor, predicted: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        class_loss, _ = super().quality_loss(logits, predicted, matched)
        iou, _ = paired_iou(predicted.detach(), matched.boxes)  # (N, A)
        distance = ((predicted - matched.boxes).abs() / self.grid.steps.repeat(1, 2)).mean(dim=-1)  # (N, A)
        divisor = self.divisor(torch.where(matched.positive, iou, 0).sum())
        return class_loss, torch.where(matched.positive, distance, 0).sum() / divisor


class LossWithFocal(DetectionLoss):
    """Focal loss (Lin et al. 2017, alpha 0.25, gamma 2) for the class: the target is 1, whatever the box's IoU."""

    def quality_loss(self, logits: Tensor, predicted: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        _, box_loss = super().quality_loss(logits, predicted, matched)
        positive = matched.positive[..., None]  # (N, A, 1)
        targets = torch.zeros_like(logits).scatter_(2, matched.columns[..., None], positive.float())  # (N, A, C)
        counted = matched.counted[..., None] & (matched.known[:, None] | positive)  # (N, A, C)
        class_loss = (sigmoid_focal_loss(logits, targets) * counted).sum()
        return class_loss / self.divisor(matched.positive.sum()), box_loss


class LossWithTaskAlignment(DetectionLoss):
    """Task-aligned label assignment (Feng et al. 2021, TOOD, section 3.2): by predictions instead of by place.

    Of the anchors whose centre is in the object, the 13 with the highest score × IoU^6 are positives.
    """

    def __init__(self, *args, most: int = 13):
        super().__init__(*args)
        self.matcher, self.most = self.match_aligned, most

    def forward(self, predictions, boxes, labels, known):
        self.predictions = [prediction.detach().float() for prediction in predictions]
        return super().forward(predictions, boxes, labels, known)

    def match_aligned(self, grid: AnchorGrid, boxes: Tensor, labels: Tensor) -> Tensor:
        """As `match_atss`: boxes (N, M, 4) and labels (N, M) -> (N, A)."""
        logits, codes = self.predictions
        overlap, _ = paired_iou(grid.decode(codes)[:, None], boxes[:, :, None])  # (N, M, A)
        column = (labels - 1).clamp(min=0)[..., None].expand(-1, -1, len(grid))  # (N, M, A)
        probability = logits.transpose(1, 2).gather(1, column).sigmoid()  # (N, M, A)
        start, end = boxes[:, :, None].split(2, dim=-1)  # (N, M, 1, 2) each
        inside = ((grid.centres > start) & (grid.centres < end)).all(dim=-1)  # (N, M, A)
        alignment = (probability * overlap**6).masked_fill(~inside | (labels <= 0)[..., None], 0)  # (N, M, A)
        chosen = alignment.topk(min(self.most, len(grid)), dim=-1).indices  # (N, M, K)
        score = torch.zeros_like(overlap).scatter_(2, chosen, overlap.gather(2, chosen))
        score = score.masked_fill(alignment <= 0, 0)  # (N, M, A)
        return assign(score, pairwise_iou(grid, boxes)[1], grid, labels)


class TrainedNorms(callbacks.FreezeBackbone):
    """The backbone's batch norm learns, and takes its statistics from the batches; its first layers stay frozen."""

    def before_fit(self, learn):
        super().before_fit(learn)
        for norm in self.norms:
            norm.requires_grad_(True)
        for part in learn.detector.backbone.frozen_parts():
            part.requires_grad_(False)
        self.norms = []  # none is put into eval mode


class Lite2Backbone(LiteBackbone):
    """EfficientNet-Lite2: wider and deeper, made for 260 px. (The package that holds it has no other use here.)"""

    channels = (48, 120, 1280)
    number = 2


def pyramid(
    course: Course,
    backbone: type[LiteBackbone] = LiteBackbone,
    head: type[PyramidHead] = PyramidHead,
    grid: GridOf = pyramid_grid,
    loss: type[DetectionLoss] = DetectionLoss,
    matcher: Callable | None = None,
    augment: Callable = Augment,
    source: Callable = CocoDetections,
    average: bool = True,
    frozen_norms: bool = True,
    masked: bool = True,
) -> Run:
    dataset = examples(course, augment=augment, source=source)
    if not masked:
        dataset.known_of = {}
    backbone = backbone(pretrained=True)
    settings = Settings(preset="pyramid", classes=dataset.classes, size=SIZE, squash=False)
    detector = Detector(backbone, head(backbone.channels, len(dataset.classes)), grid, MEAN, STD, settings)
    detector.to(memory_format=torch.channels_last)
    left_out = [] if average else [callbacks.EMA]
    left_out += [] if frozen_norms else [callbacks.FreezeBackbone]
    instead = [] if frozen_norms else [TrainedNorms()]
    return our_run(
        course, detector, loss(detector.grid(SIZE, SIZE), "quality", matcher), dataset, tuple(left_out), instead
    )


def our_run(course: Course, detector: Detector, loss: DetectionLoss, dataset, left_out=(), instead=()) -> Run:
    """A detector of this project trained as `odutils.training.train` does, but by the course's minutes or epochs."""
    recipe, sampler = course.recipe, Endless(len(dataset), course.seed)
    budget, batch_size = course.budget(recipe.batch_size), recipe.batch_size
    dls = SimpleNamespace(train=course.loader(dataset, batch_size, sampler), valid=[])
    mixed = course.precision(detector)
    instead = [budget, Pace(budget), mixed, *instead]
    learn = make_learner(detector, dls, recipe, loss, course.device, instead)
    left_out = (callbacks.Schedule, MixedPrecision, *left_out)
    learn.cbs = [callback for callback in learn.cbs if not isinstance(callback, left_out) or callback in instead]
    precision = name_of(mixed.dtype or half_precision(course.device))
    return Run(learn, Predictor(detector, course.device), sampler, batch_size, course.image(), precision)
