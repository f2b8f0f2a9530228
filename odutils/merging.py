"""Merging: the detections of all views of an image -> one for each object, whatever the tiles' edges cut.

An edge of a tile that is not the image's is an **inner edge**. A detection that ends at an inner edge of its tile is a
**piece** of an object; the others are **whole**.

    ┌───────────────┬──────┬───────────────┐    Tile A consists of the left and the middle part,
    │ A       ┌─────┼──────┼────┐        B │    tile B of the middle and the right one. Each sees
    │         │     │ both │    │          │    a piece of the object, up to its own inner edge.
    │         └─────┼──────┼────┘          │    In the middle, where both look, the pieces agree.
    └───────────────┴──────┴───────────────┘

NMS keeps one whole detection an object. A piece then goes the first of these ways that is open to it:
1. A whole detection of its class covers at least half of the piece: both are one object. The piece adds its score only.
2. A whole detection of another class agrees with the piece: the piece is dropped. This is NMS across classes, so it
   happens only if `class_agnostic` is set.
3. A piece of its class agrees with it: the two are joined to their hull, the smallest box around both.
4. The piece stays as it is.

V views, K detections, P pieces. Boxes are xyxy in pixels of the image.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from odutils.selection import ANY_CLASS_IOU, SAME_CLASS_IOU, check_options

EDGE = 8  # px of the input: 97 of 100 boxes of cut objects end as near as that to the cut (finest stride 8)
COVERED = 0.5  # share of a piece, or agreement of two, from which on both detections are of one object
CANDIDATES = 10_000  # detections of the highest scores, which alone are merged: three seconds at most
PAIRS = 2**18  # pairs of detections that are compared at once: 50 MB


class Found(NamedTuple):
    """Detections of several views together."""

    boxes: Tensor  # (K, 4) float64
    labels: Tensor  # (K,)
    scores: Tensor  # (K,) float64
    view: Tensor  # (K,) number of the view that it comes from
    window: Tensor  # (K, 4) where that view lies

    def at(self, index: Tensor) -> "Found":
        return Found(*(column[index] for column in self))


def merge(
    views: np.ndarray,
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    size: int,
    iou_threshold: float = SAME_CLASS_IOU,
    class_agnostic: bool = True,
    max_detections: int = 100,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections of an image from those of its views: each object once, best first.

    By the rules above. An object has the best score of its detections.
    views: (V, 4), the whole image first, see `tiling.place_views`.
    found: boxes (K, 4) in pixels of the view, labels (K,), scores (K,), for each view.
    size: px of the network's input.   Other options: of `selection.select`.
    Returns boxes (K, 4) float32 in pixels of the image, labels (K,), scores (K,).
    """
    check_options(0, iou_threshold, max_detections)
    every = gather(views, found)
    cut = find_cut(every, views, size)  # (K,)
    whole, pieces = every.at(~cut), every.at(cut)
    kept = batched_nms(whole.boxes, whole.scores, whole.labels, iou_threshold)
    objects = whole.at(kept)
    # A piece may belong to a whole detection that NMS has suppressed: the box of the whole image's view, which has won,
    # is coarser and may cover little of a narrow piece.
    object_of = find_owners(whole, objects)  # for each whole one the index of its object, -1 for none
    object_of[kept] = torch.arange(len(kept))
    owner = find_owners(pieces, whole)  # (P,)
    owned = owner >= 0
    index, scores = object_of[owner[owned]], pieces.scores[owned]
    scores = objects.scores.scatter_reduce(0, index.clamp(min=0), scores.where(index >= 0, 0.0), "amax")
    left = pieces.at(~owned)
    joined = join(left.at(~find_renamed(left, whole)) if class_agnostic else left)
    boxes, labels, scores = map(torch.cat, zip((objects.boxes, objects.labels, scores), joined, strict=True))
    kept = batched_nms(boxes, scores, labels, iou_threshold)
    if class_agnostic:
        kept = kept[nms(boxes[kept], scores[kept], ANY_CLASS_IOU)]
    kept = kept[:max_detections]
    return boxes[kept].float().numpy(), labels[kept].numpy(), scores[kept].float().numpy()


def gather(views: np.ndarray, found: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Found:
    """The best CANDIDATES detections of all views, in pixels of the image."""
    boxes, labels, scores = (torch.from_numpy(np.concatenate(column)) for column in zip(*found, strict=True))
    view = torch.arange(len(views)).repeat_interleave(torch.tensor([len(one[1]) for one in found]))
    window = torch.from_numpy(views)[view]  # (K, 4)
    every = Found(boxes.double() + window[:, :2].repeat(1, 2), labels, scores.double(), view, window)
    return every.at(every.scores.argsort(descending=True, stable=True)[:CANDIDATES])


def find_cut(found: Found, views: np.ndarray, size: int) -> Tensor:
    """Which detections end within EDGE of an inner edge of their tile (K,)."""
    reach = EDGE * float((views[1:, 2:] - views[1:, :2]).max(initial=0)) / size  # EDGE in pixels of the image
    inner = found.window != torch.from_numpy(views[0])  # (K, 4)
    return (inner & ((found.boxes - found.window).abs() <= reach)).any(dim=1)


def compare(pieces: Found, others: Found) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Compare each of P pieces with each of O other detections; yield the figures of some pieces at a time.

    Yields the pieces' numbers (p,) and three (p, O): whether both are of one class; the share of the piece that the
    other covers; their agreement, the IoU of those parts of both that lie where both views look. For two detections of
    the same view the last two are 0.
    """
    if not (len(pieces.labels) and len(others.labels)):
        return
    for rows in torch.arange(len(pieces.labels)).split(max(1, PAIRS // len(others.labels))):
        some = Found(*(column[rows, None] for column in pieces))  # (p, 1, …)
        shared = shared_area(some.boxes, others.boxes)  # (p, O)
        seen = shared_area(some.boxes, others.window) + shared_area(others.boxes, some.window) - shared
        shared = shared.where(some.view != others.view, 0.0)
        cover, agreement = shared / shared_area(some.boxes, some.boxes), shared / seen.clamp(min=1e-9)
        yield rows, some.labels == others.labels, cover, agreement


def shared_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Area of intersection.   boxes, others: (…, 4), broadcast.   Returns (…)."""
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    return sides.clamp(min=0).prod(dim=-1)


def find_owners(pieces: Found, whole: Found) -> Tensor:
    """For each piece the whole detection that it belongs to (P,), -1 for none: of those that cover it by COVERED, the
    one whose visible part agrees best with it. Each piece has one owner, so that no piece joins two whole objects."""
    owner = torch.full((len(pieces.labels),), -1)
    for rows, same_class, cover, agreement in compare(pieces, whole):
        best, index = agreement.where(same_class & (cover >= COVERED), -1.0).max(dim=1)  # (p,)
        owner[rows] = index.where(best >= 0, -1)
    return owner


def find_renamed(pieces: Found, whole: Found) -> Tensor:
    """Which pieces (P,) are the visible part of a whole detection under the name of another class.

    NMS across classes, in which the whole one wins whatever the scores: its view sees more of the object.
    """
    renamed = torch.zeros(len(pieces.labels), dtype=torch.bool)
    for rows, _, _, agreement in compare(pieces, whole):
        renamed[rows] = (agreement > ANY_CLASS_IOU).any(dim=1)
    return renamed


def join(pieces: Found) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of one object -> their hull. Returns boxes (objects, 4), labels, scores.

    Two pieces are of one object if their agreement is at least COVERED, and if in neither's view another piece agrees
    better: of two people at a seam each gets its own halves. Joining goes on from piece to piece, so that an object
    across many tiles becomes one.
    """
    count, links = len(pieces.labels), [torch.zeros((0, 2), dtype=torch.int64)]
    for rows, same_class, _, agreement in compare(pieces, pieces):
        agreement = agreement.where(same_class, 0.0)
        view = pieces.view.unique(return_inverse=True)[1].expand_as(agreement)  # numbered without gaps
        best = torch.zeros_like(agreement).scatter_reduce(1, view, agreement, "amax")  # (p, P), of each view
        best = best.gather(1, view)  # (p, P), for each piece that of its view
        row, column = ((agreement >= COVERED) & (agreement == best)).nonzero(as_tuple=True)
        links.append(torch.stack([rows[row], column], dim=1))
    links = torch.cat(links)
    mutual = torch.isin(links @ torch.tensor([count, 1]), links @ torch.tensor([1, count]))
    first, second = links[mutual].T
    group = torch.arange(count)  # (P,), in the end the lowest number of all pieces that links lead to
    while True:
        lowest = group.scatter_reduce(0, first, group[second], "amin")
        if torch.equal(lowest, group):
            break
        group = lowest
    rows = group[:, None].expand(-1, 2)
    upper_left = pieces.boxes[:, :2].scatter_reduce(0, rows, pieces.boxes[:, :2], "amin")
    lower_right = pieces.boxes[:, 2:].scatter_reduce(0, rows, pieces.boxes[:, 2:], "amax")
    scores = pieces.scores.scatter_reduce(0, group, pieces.scores, "amax")
    heads = group == torch.arange(count)
    return torch.cat([upper_left, lower_right], dim=1)[heads], pieces.labels[heads], scores[heads]
