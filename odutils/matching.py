"""Label assignment: which anchor, or which point, should detect which ground-truth box.

A detector makes one prediction per anchor or point. Training has to say which of them are positives (and of which
object), which are negatives, and which are ignored: matches (N, A) hold the index of an object, BACKGROUND or IGNORED.
Boxes are xyxy, 0…1 (see anchors.py, points.py). N images, M objects (zero-padded), A anchors or points, K candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from odutils.anchors import AnchorGrid
from odutils.points import PointGrid

BACKGROUND = -1  # a negative: the anchor is assigned to no object
IGNORED = -2  # neither positive nor negative: it lies in a crowd or on a difficult object
MOST_CELLS = 6  # length of a level's longest objects, in `match_points`: 48 px at stride 8 (FCOS: 16, input of 800 px)
RADIUS = 1.5  # cells from an object's centre, in x and y, within which points are positives (FCOS's centre sampling)


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


def match_points(grid: PointGrid, boxes: Tensor, labels: Tensor, radius: float = RADIUS) -> Tensor:
    """Assign points to objects by size and place, as FCOS does (Tian et al. 2019, section 3.2), without any anchor.

    Each object belongs to one level: the finest in whose cells its longer side measures at most MOST_CELLS, or else the
    coarsest. (FCOS decides this for each point by the distance to the farthest side; decided once for an object, no
    object falls between two levels.) Its positives are the level's points inside the object that are at most `radius`
    cells from its centre in x and y, or, where there is none, the nearest one. Of several objects the smallest gets the
    point. Negatives in an ignored object are ignored.

    grid: A points.   boxes: (N, M, 4) xyxy.   labels: (N, M), 0 = padding, -1 = ignore.
    Returns (N, A) int64: index of the object in 0…M-1, BACKGROUND or IGNORED.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(grid)), BACKGROUND, device=boxes.device)
    left, top, right, bottom = boxes[..., None].unbind(dim=2)  # (N, M, 1) each
    x, y, step_x, step_y = torch.cat([grid.centres, grid.steps], dim=1).T.contiguous()  # (A,) each
    inside = (x > left) & (x < right) & (y > top) & (y < bottom)  # (N, M, A)
    width, height = right - left, bottom - top  # (N, M, 1) each
    cells = torch.maximum(width / grid.level_steps[:, 0], height / grid.level_steps[:, 1])  # (N, M, L)
    # 1e-3: an object of exactly 6 cells belongs to the level wherever it lies, whatever rounding adds to its length.
    level = (cells > MOST_CELLS + 1e-3).sum(dim=-1, keepdim=True).clamp(max=len(grid.counts) - 1)  # (N, M, 1)
    across = (x - (left + right) / 2).abs_().div_(step_x)  # (N, M, A) in cells of the point's level
    down = (y - (top + bottom) / 2).abs_().div_(step_y)
    distance = torch.maximum(across, down, out=across).masked_fill_(grid.levels != level, torch.inf)
    positive = inside & (distance <= radius)
    nearest = distance.argmin(dim=-1, keepdim=True)  # (N, M, 1)
    lonely = ~positive.any(dim=-1, keepdim=True)  # (N, M, 1)
    positive.scatter_(2, nearest, positive.gather(2, nearest) | lonely)
    positive &= (labels > 0)[..., None]
    area, matches = torch.where(positive, width * height, torch.inf).min(dim=1)  # (N, A) each
    negative = area == torch.inf
    ignored = (inside & (labels == -1)[..., None]).any(dim=1)  # (N, A)
    return matches.masked_fill_(negative, BACKGROUND).masked_fill_(negative & ignored, IGNORED)
