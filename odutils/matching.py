"""Label assignment: which anchor should detect which ground-truth box.

A detector makes one prediction per anchor. Training has to say which anchors are positives (and of which object), which
are negatives, and which are ignored: matches (N, A) hold the index of an object, BACKGROUND or IGNORED. Boxes are xyxy,
0…1 (see anchors.py). N images, M objects (zero-padded), A anchors, K candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from odutils.anchors import AnchorGrid

BACKGROUND = -1  # a negative: the anchor is assigned to no object
IGNORED = -2  # neither positive nor negative: it lies in a crowd or on a difficult object


def pairwise_iou(grid: AnchorGrid, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of every object with every anchor, and the area of their intersection.

    grid: A anchors.   boxes: (N, M, 4).   Returns two (N, M, A). (`torchvision.ops.box_iou` takes one image at a time.)
    """
    start, end = boxes[..., None].split(2, dim=2)  # (N, M, 2, 1) each: left and top, right and bottom
    anchor_start, anchor_end = grid.edges.split(2)  # (2, A) each
    size = torch.minimum(end, anchor_end).sub_(torch.maximum(start, anchor_start)).clamp_(min=0)  # (N, M, 2, A)
    intersection = size[:, :, 0] * size[:, :, 1]  # (N, M, A)
    width, height = (end - start).unbind(dim=2)  # (N, M, 1) each
    union = (width * height + grid.areas).sub_(intersection)  # (N, M, A), positive as the anchors' areas are
    return torch.div(intersection, union, out=union), intersection


def assign(score: Tensor, intersection: Tensor, grid: AnchorGrid, labels: Tensor, cover: float = 0.5) -> Tensor:
    """Each anchor becomes a positive of the object with its highest score above 0; the others are negative or ignored.

    score: (N, M, A).   intersection: (N, M, A) areas, from `pairwise_iou`; is overwritten.   labels: (N, M).
    cover: share of a negative's area that an ignored object has to cover to make it ignored.   Returns (N, A) int64.
    """
    best, matches = score.max(dim=1)  # (N, A) each
    negative = best <= 0
    covered = intersection.masked_fill_((labels != -1)[..., None], 0).amax(dim=1)  # (N, A)
    matches.masked_fill_(negative, BACKGROUND)
    return matches.masked_fill_(negative & (covered > grid.areas * cover), IGNORED)


def match_iou(grid: AnchorGrid, boxes: Tensor, labels: Tensor, threshold: float = 0.5, cover: float = 0.5) -> Tensor:
    """Assign anchors to objects by IoU, as SSD does (Liu et al. 2016, section 2.2).

    An anchor is positive for the object that it overlaps most, if their IoU exceeds `threshold`. In addition, every
    object gets its best anchor whatever the IoU, so that small objects keep at least one positive. Where several
    objects have the same best anchor, the one of highest IoU gets it.

    grid: A anchors.   boxes: (N, M, 4) xyxy.   labels: (N, M), 0 = padding, -1 = ignore.   cover: see `assign`.
    Returns (N, A) int64: index of the object in 0…M-1, BACKGROUND or IGNORED.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(grid)), BACKGROUND, device=boxes.device)
    iou, intersection = pairwise_iou(grid, boxes)  # (N, M, A) each
    iou.masked_fill_((labels <= 0)[..., None], 0)
    best, anchor = iou.max(dim=2, keepdim=True)  # (N, M, 1) each
    score = F.threshold_(iou, threshold, 0.0)  # what does not exceed it becomes 0
    score.scatter_(2, anchor, torch.where(best > 0, best + 1, 0))  # outranks every IoU of other objects
    return assign(score, intersection, grid, labels, cover)


def match_atss(grid: AnchorGrid, boxes: Tensor, labels: Tensor, nearest: int = 9, cover: float = 0.5) -> Tensor:
    """Assign anchors to objects by adaptive training sample selection, ATSS (Zhang et al. 2020, algorithm 1).

    Candidates of an object are the `nearest` anchors of each level by distance of centres. Its threshold is mean +
    standard deviation of their IoU; candidates that reach it and whose centre lies in the object are its positives.
    Unlike in the paper, an object without any (small, or squeezed between cells) gets its candidate of highest IoU.

    Arguments and result as for `match_iou`.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(grid)), BACKGROUND, device=boxes.device)
    iou, intersection = pairwise_iou(grid, boxes)  # (N, M, A) each
    start, end = boxes.split(2, dim=-1)  # (N, M, 2) each
    centre = (start.lerp(end, 0.5) / grid.finest_step)[..., None]  # (N, M, 2, 1)
    distance = (centre - grid.scaled_centres).square_().sum(dim=2)  # (N, M, A)
    candidates, first = [], 0
    for count in grid.counts:
        near = distance[..., first : first + count].topk(min(nearest, count), dim=-1, largest=False).indices
        candidates.append(near + first)
        first += count
    candidates = torch.cat(candidates, dim=-1)  # (N, M, K)
    candidate_iou = iou.gather(2, candidates)  # (N, M, K)
    deviation, mean = torch.std_mean(candidate_iou, dim=-1, keepdim=True)  # (N, M, 1) each
    centres = grid.centres[candidates]  # (N, M, K, 2)
    inside = ((centres > start[:, :, None]) & (centres < end[:, :, None])).all(dim=-1)  # (N, M, K)
    positive = (candidate_iou >= mean + deviation) & inside
    # The highest IoU among the positives, or among all candidates where no positive raises its own by 1.
    best = (candidate_iou + positive).argmax(dim=-1, keepdim=True)  # (N, M, 1)
    positive = positive.scatter_(2, best, True) & (labels > 0)[..., None]
    score = torch.zeros_like(iou).scatter_(2, candidates, candidate_iou * positive)  # (N, M, A)
    return assign(score, intersection, grid, labels, cover)
