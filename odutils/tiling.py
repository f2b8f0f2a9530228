"""Tiling: overlapping windows of an image, each given to the network by itself, so that small objects are seen larger.

Also called slicing (SAHI, Akyon et al. 2022). The **views** of an image are the whole image and its tiles. Tiles cut
objects at their inner edges, those that are not the image's: `merge` makes one detection an object out of all views.
V views, K detections, P pieces. Boxes are xyxy in pixels of the image.
"""

from math import ceil
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from odutils.selection import ANY_CLASS_IOU, SAME_CLASS_IOU, check_options

OVERLAP = 0.2  # of a tile's side, shared by neighbours (SAHI's default): smaller objects are whole in one of the tiles
SMALLEST = 32  # px of a tile's longer side: smaller tiles, enlarged to the input, show blur
EDGE = 4  # px of the input, half a cell of the finest level: a box that ends as near as that to an inner edge is cut
COVERED = 0.5  # share from which a piece belongs to another detection
CANDIDATES = 10_000  # detections, the best, that `merge` compares with each other: about two seconds at most
PAIRS = 2**18  # compared at once: 50 MB


class Found(NamedTuple):
    """Detections of several views together."""

    boxes: Tensor  # (K, 4) float64
    labels: Tensor  # (K,)
    scores: Tensor  # (K,) float64
    view: Tensor  # (K,) number of the view that it comes from
    window: Tensor  # (K, 4) where that view lies

    def at(self, index: Tensor) -> "Found":
        return Found(*(column[index] for column in self))


def check_tiles(tiles: int | str) -> None:
    """Raise ValueError unless `tiles` is a number of tiles or "auto"."""
    if tiles != "auto" and (not isinstance(tiles, Integral) or tiles < 1):
        raise ValueError(f"tiles is {tiles!r}: it must be a whole number, at least 1, or 'auto'")


def place_views(height: int, width: int, tiles: int | str, size: int) -> np.ndarray:
    """Where the views of an image lie: the whole image first, then its tiles row by row, all of one size.

    tiles: how many along the longer side; along the shorter one there are as many of about that side as cover it. 1 is
    the whole image alone. "auto": as many as show the network, whose input has `size` px, the image's full resolution.
    Returns (V, 4) int64 xyxy in pixels.
    """
    check_tiles(tiles)
    longer = max(height, width)
    most = max(1, int((longer / SMALLEST - OVERLAP) / (1 - OVERLAP)))
    count = min(count_tiles(longer, size) if tiles == "auto" else int(tiles), most)
    whole = np.array([[0, 0, width, height]])
    if count == 1:
        return whole
    side = tile_side(longer, count)
    tops, tile_height = spread(height, side)
    lefts, tile_width = spread(width, side)
    corners = np.array([(left, top) for top in tops for left in lefts])  # (tiles, 2)
    return np.concatenate([whole, np.hstack([corners, corners + [tile_width, tile_height]])])


def count_tiles(length: int, side: float) -> int:
    """How many tiles of `side` px at most cover a length, each overlapping the next by OVERLAP."""
    return max(1, ceil((length / side - OVERLAP) / (1 - OVERLAP) - 1e-9))


def tile_side(length: int, count: int) -> float:
    """The side of `count` tiles that cover a length together."""
    return length / (count * (1 - OVERLAP) + OVERLAP)


def spread(length: int, side: float) -> tuple[list[int], int]:
    """Where the tiles along a length begin, and their common length: `side` px at most."""
    count = count_tiles(length, side)
    common = min(length, ceil(tile_side(length, count)))
    return np.linspace(0, length - common, count).round().astype(int).tolist(), common


def merge(
    views: np.ndarray,
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]],
    size: int,
    iou_threshold: float = SAME_CLASS_IOU,
    class_agnostic: bool = True,
    max_detections: int = 100,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The detections of an image from those of its views: each object once, best first.

    A detection that an inner edge of its tile cuts is a piece of an object; the others are whole. NMS keeps one whole
    detection an object. A piece that a whole one of its class covers by half belongs to it. Pieces that are left become
    their hull (see `join`). The best score of the members is that of the group.
    views: (V, 4), see `place_views`.   found: boxes (K, 4) in pixels of the view, labels, scores, for each view.
    size: px of the network's input.   Other options: of `selection.select`.
    Returns boxes (K, 4) float32 in pixels of the image, labels (K,), scores (K,).
    """
    check_options(0, iou_threshold, max_detections)
    every = gather(views, found)
    reach = EDGE * float((views[1:, 2:] - views[1:, :2]).max(initial=0)) / size  # EDGE in pixels of the image
    to_edge, to_border = (every.boxes - every.window).abs(), every.window != torch.from_numpy(views[0])
    cut = ((to_edge <= reach) & to_border).any(dim=1)  # (K,)
    whole, pieces = every.at(~cut), every.at(cut)
    whole = whole.at(batched_nms(whole.boxes, whole.scores, whole.labels, iou_threshold))
    owner = find_owners(pieces, whole)  # (P,)
    owned = owner >= 0
    scores = whole.scores.scatter_reduce(0, owner[owned], pieces.scores[owned], "amax")
    boxes, labels, scores = map(
        torch.cat, zip((whole.boxes, whole.labels, scores), join(pieces.at(~owned)), strict=True)
    )
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


def compare(pieces: Found, others: Found):
    """Yield, for some of P pieces at a time, how they lie to O other detections.

    Yields the pieces' numbers (p,) and three (p, O): whether both may show one object, being of one class and of two
    views; the share of the piece that the other covers; their agreement, the IoU of what lies where both views look.
    """
    if not (len(pieces.labels) and len(others.labels)):
        return
    for rows in torch.arange(len(pieces.labels)).split(max(1, PAIRS // len(others.labels))):
        some = Found(*(column[rows, None] for column in pieces))  # (p, 1, …)
        shared = shared_area(some.boxes, others.boxes)  # (p, O)
        seen = shared_area(some.boxes, others.window) + shared_area(others.boxes, some.window) - shared
        alike = (some.labels == others.labels) & (some.view != others.view)
        yield rows, alike, shared / shared_area(some.boxes, some.boxes), shared / seen.clamp(min=1e-9)


def shared_area(boxes: Tensor, others: Tensor) -> Tensor:
    """Area of intersection.   boxes, others: (…, 4), broadcast.   Returns (…)."""
    sides = torch.minimum(boxes[..., 2:], others[..., 2:]) - torch.maximum(boxes[..., :2], others[..., :2])
    return sides.clamp(min=0).prod(dim=-1)


def find_owners(pieces: Found, whole: Found) -> Tensor:
    """For each piece the whole detection that it belongs to (P,), -1 for none: of those that cover it by COVERED, the
    one whose visible part agrees best with it. Each piece has one owner, so that no piece joins two whole objects."""
    owner = torch.full((len(pieces.labels),), -1)
    for rows, alike, cover, agreement in compare(pieces, whole):
        best, index = agreement.where(alike & (cover >= COVERED), -1.0).max(dim=1)  # (p,)
        owner[rows] = index.where(best >= 0, -1)
    return owner


def join(pieces: Found) -> tuple[Tensor, Tensor, Tensor]:
    """Pieces of one object -> their hull. Returns boxes (objects, 4), labels, scores.

    Two pieces are of one object if, where both views look, they agree by COVERED, and if in either's view there is no
    piece that agrees better with the other: of two people at a seam each gets its own halves. It goes on from piece to
    piece, so that an object across many tiles becomes one.
    """
    count, links = len(pieces.labels), [torch.zeros((0, 2), dtype=torch.int64)]
    for rows, alike, _, agreement in compare(pieces, pieces):
        agreement = agreement.where(alike, 0.0)
        view = pieces.view.expand_as(agreement)
        best = torch.zeros(len(rows), int(pieces.view.max()) + 1, dtype=torch.float64)
        best = best.scatter_reduce(1, view, agreement, "amax").gather(1, view)  # (p, P) of all in that view
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
