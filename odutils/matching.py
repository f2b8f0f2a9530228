"""Which anchor answers for which object.

A detector makes one prediction an anchor; training must say which object, if any, each of them should have found. The
answer is a match (N, A): the index of an object, BACKGROUND or IGNORED. Boxes are xyxy, 0…1 (see anchors.py).
N images, M objects (zero-padded), A anchors, K candidates.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from odutils.anchors import AnchorGrid

BACKGROUND = -1  # the anchor answers for nothing
IGNORED = -2  # it lies in a crowd or on a difficult object: neither right nor wrong


def pairwise_iou(boxes: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of every object with every anchor, and the area that they share.

    boxes: (N, M, 4).   anchors: (A, 4).   Returns two (N, M, A). (`torchvision.ops.box_iou` takes one image at a time.)
    """
    left, top, right, bottom = boxes[:, :, None].unbind(dim=-1)  # (N, M, 1) each
    anchor_left, anchor_top, anchor_right, anchor_bottom = anchors.unbind(dim=-1)  # (A,) each
    width = torch.minimum(right, anchor_right).sub_(torch.maximum(left, anchor_left)).clamp_(min=0)  # (N, M, A)
    height = torch.minimum(bottom, anchor_bottom).sub_(torch.maximum(top, anchor_top)).clamp_(min=0)  # (N, M, A)
    shared = width.mul_(height)
    anchor_area = (anchor_right - anchor_left) * (anchor_bottom - anchor_top)  # (A,)
    box_area = (right - left) * (bottom - top)  # (N, M, 1)
    union = (anchor_area + box_area).sub_(shared).clamp_(min=torch.finfo(shared.dtype).tiny)
    return torch.div(shared, union, out=union), shared


def assign(score: Tensor, shared: Tensor, anchors: Tensor, labels: Tensor, cover: float = 0.5) -> Tensor:
    """Each anchor takes the object of its highest positive score; what lies mostly in an ignored object is ignored.

    score: (N, M, A).   shared: (N, M, A) areas, from `pairwise_iou`; is overwritten.   anchors: (A, 4) xyxy.
    labels: (N, M).   cover: the share of an anchor from which it lies in an ignored object.   Returns (N, A) int64.
    """
    best, index = score.max(dim=1)  # (N, A)
    match = torch.where(best > 0, index, BACKGROUND)
    covered = shared.masked_fill_((labels != -1)[..., None], 0).amax(dim=1)  # (N, A)
    in_ignored = covered > cover * (anchors[:, 2:] - anchors[:, :2]).prod(dim=-1)  # (N, A)
    return torch.where(in_ignored & (match == BACKGROUND), IGNORED, match)


def match_iou(grid: AnchorGrid, boxes: Tensor, labels: Tensor, threshold: float = 0.5, cover: float = 0.5) -> Tensor:
    """Match anchors to objects as SSD does (Liu et al. 2016, section 2.2).

    An anchor takes the object it overlaps most, if their IoU exceeds `threshold`; then every object takes its best
    anchor whatever the IoU, so that none is forgotten. Where several objects want the same best anchor, the one that
    overlaps it most has it.

    grid: A anchors.   boxes: (N, M, 4) xyxy.   labels: (N, M), 0 = padding, -1 = ignore.   cover: see IGNORED.
    Returns (N, A) int64: index of the object in 0…M-1, BACKGROUND or IGNORED.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(grid)), BACKGROUND, device=boxes.device)
    iou, shared = pairwise_iou(boxes, grid.boxes)  # (N, M, A)
    iou.masked_fill_((labels <= 0)[..., None], 0)
    best, anchor = iou.max(dim=2, keepdim=True)  # (N, M, 1)
    score = F.threshold_(iou, threshold, 0.0)  # what does not exceed it becomes 0
    score.scatter_(2, anchor, torch.where(best > 0, best + 1, 0))  # outranks every IoU of other objects
    return assign(score, shared, grid.boxes, labels, cover)


def match_atss(grid: AnchorGrid, boxes: Tensor, labels: Tensor, nearest: int = 9, cover: float = 0.5) -> Tensor:
    """Match anchors to objects by adaptive training sample selection (Zhang et al. 2020, algorithm 1).

    Candidates of an object are the `nearest` anchors of each level by distance of centres. Its threshold is mean +
    standard deviation of their IoU; those above it whose centre lies in the object answer for it. Unlike the paper, an
    object without such an anchor (small, or squeezed between cells) keeps the candidate that overlaps it most.

    Arguments and result as for `match_iou`.
    """
    if not boxes.shape[1]:
        return torch.full((len(boxes), len(grid)), BACKGROUND, device=boxes.device)
    iou, shared = pairwise_iou(boxes, grid.boxes)  # (N, M, A)
    real = (labels > 0)[..., None]  # (N, M, 1)
    anchor_centre = (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2  # (A, 2)
    box_centre = (boxes[..., :2] + boxes[..., 2:]) / 2  # (N, M, 2)
    finest = grid.steps.amin(dim=0)  # (2,) one cell of the finest level, a square on the image
    box_x, box_y = (box_centre / finest)[:, :, None].unbind(dim=-1)  # (N, M, 1) each
    anchor_x, anchor_y = (anchor_centre / finest).unbind(dim=-1)  # (A,) each
    distance = (box_x - anchor_x).square_().add_((box_y - anchor_y).square_())  # (N, M, A)
    candidates, first = [], 0
    for count in grid.counts:
        near = distance[..., first : first + count].topk(min(nearest, count), dim=-1, largest=False).indices
        candidates.append(near + first)
        first += count
    candidates = torch.cat(candidates, dim=-1)  # (N, M, K)
    candidate_iou = iou.gather(2, candidates)  # (N, M, K)
    threshold = candidate_iou.mean(dim=-1, keepdim=True) + candidate_iou.std(dim=-1, keepdim=True)  # (N, M, 1)
    centre = anchor_centre[candidates]  # (N, M, K, 2)
    inside = ((centre > boxes[:, :, None, :2]) & (centre < boxes[:, :, None, 2:])).all(dim=-1)  # (N, M, K)
    chosen = (candidate_iou >= threshold) & inside
    best = torch.zeros_like(chosen).scatter_(2, candidate_iou.argmax(dim=-1, keepdim=True), True)
    chosen = torch.where(chosen.any(dim=-1, keepdim=True), chosen, best) & real
    score = torch.zeros_like(iou).scatter_(2, candidates, torch.where(chosen, candidate_iou, 0))  # (N, M, A)
    return assign(score, shared, grid.boxes, labels, cover)
