"""What one writes first: a loop over images, objects and pairs. The baseline without the article's code."""

import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.ops import box_iou
from torchvision.transforms import ColorJitter
from torchvision.transforms.functional import pil_to_tensor

from odutils.anchors import article_grid

GRID = article_grid()


def loss(logits, codes, boxes, labels):
    """The article preset's loss, image after image. Shapes as in `DetectionLoss`."""
    total, grid = 0.0, GRID.to(logits.device)
    one_of_each = torch.eye(logits.shape[-1] + 1, device=logits.device)
    for image_logits, image_codes, image_boxes, image_labels in zip(logits, codes, boxes, labels, strict=True):
        image_boxes, image_labels = image_boxes[image_labels > 0], image_labels[image_labels > 0]
        overlap = box_iou(image_boxes, grid.boxes)  # (M, A)
        best, index = overlap.max(dim=0)
        for number, anchor in enumerate(overlap.argmax(dim=1)):
            best[anchor], index[anchor] = 2, number
        matched = best > 0.5
        targets = one_of_each[torch.where(matched, image_labels[index], 0)][:, 1:]  # (A, C)
        p = image_logits.sigmoid().detach()
        p_t, alpha = p * targets + (1 - p) * (1 - targets), 0.25 * targets + 0.75 * (1 - targets)
        entropy = F.binary_cross_entropy_with_logits(image_logits, targets, alpha * (1 - p_t), reduction="sum")
        error = (grid.decode(image_codes)[matched] - image_boxes[index][matched]).abs().mean()
        total = total + entropy / logits.shape[-1] + error
    return total


def select(logits, codes, threshold, iou_threshold):
    """Decode every box, then keep the best and throw away what overlaps it, class by class."""
    boxes, (scores, labels) = GRID.decode(codes), logits.sigmoid().max(dim=1)
    likely = scores > threshold
    boxes, scores, labels = boxes[likely], scores[likely], labels[likely]
    kept = []
    for label in labels.unique().tolist():
        rest = [i for i in scores.argsort(descending=True).tolist() if labels[i] == label]
        while rest:
            best, rest = rest[0], rest[1:]
            kept.append(best)
            rest = [i for i in rest if box_iou(boxes[best][None], boxes[i][None]) <= iou_threshold]
    return boxes[kept], labels[kept] + 1, scores[kept]


class Examples:
    """The files of a data set, coloured, resized and mirrored by PIL and torchvision; no crops and no zooming out."""

    def __init__(self, dataset):
        self.dataset, self.colour = dataset, ColorJitter(brightness=0.35, contrast=0.4, saturation=0.5)

    def __getitem__(self, index):
        file = self.dataset.files[self.dataset.ids[index]]
        image = self.colour(Image.open(file).convert("RGB")).resize((224, 224), Image.Resampling.BICUBIC)
        if torch.rand(()) < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return (pil_to_tensor(image) / 255 - 0.45) / 0.225, self.dataset.boxes[index], self.dataset.labels[index]
