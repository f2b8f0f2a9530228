"""Anchors, and how boxes are encoded as offsets from them: the targets of box regression.

An anchor is a box at a fixed place. The network makes one prediction per anchor: the scores of the classes, and how the
object's box differs from the anchor. Boxes are xyxy in 0…1 of the network's input. Anchors stand level after level from
fine to coarse, row by row: in the order of the predictions that the heads of `model.py` make. A anchors, L levels.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torchvision.ops import box_convert

from odutils.points import PYRAMID_STRIDES, PointGrid, cell_centres, once, point_grid

ARTICLE_LEVELS = ((7, 1 / 8), (4, 1 / 4), (2, 1 / 2), (1, 1.0))  # cells a side, size of a whole anchor
PYRAMID_ANCHOR = 5  # side of a pyramid's anchor in strides: 40 px at stride 8 (ATSS: 8, for input four times as large)


@dataclass(frozen=True)
class AnchorGrid:
    """All anchors of a detector for one input size, and the coding of boxes as offsets from them.

    What follows from the anchors alone is computed once, when it is first asked for.
    """

    boxes: Tensor  # (A, 4) xyxy, 0…1, each of positive area
    steps: Tensor  # (A, 2) width and height of the anchor's cell, 0…1
    counts: tuple[int, ...]  # anchors of each level, sum A
    coding: str  # "tanh" or "sides"

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> "AnchorGrid":
        return AnchorGrid(self.boxes.to(device), self.steps.to(device), self.counts, self.coding)

    def pick(self, index: Tensor) -> "AnchorGrid":
        """The grid with only the anchors `index` (K,), in that order; it counts as one level."""
        return AnchorGrid(self.boxes[index], self.steps[index], (len(index),), self.coding)

    def decode(self, codes: Tensor) -> Tensor:
        """Box regression outputs (…, A, 4) -> boxes (…, A, 4) xyxy, 0…1; parts outside the image are not cut off."""
        if self.coding == "tanh":
            return decode_tanh(codes, self.boxes)
        return self.points.decode(codes)

    def encode(self, boxes: Tensor) -> Tensor:
        """Boxes (…, A, 4), one per anchor -> the codes that decode to them, or to the nearest boxes within reach."""
        if self.coding == "tanh":
            return encode_tanh(boxes, self.boxes)
        return self.points.encode(boxes)

    @once
    def centres(self) -> Tensor:
        """(A, 2) x and y."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    @once
    def points(self) -> PointGrid:
        """The anchors' centres, to which the coding "sides" belongs."""
        return PointGrid(self.centres, self.steps, self.counts)

    @once
    def areas(self) -> Tensor:
        """(A,), as shares of the input."""
        return (self.boxes[:, 2:] - self.boxes[:, :2]).prod(dim=-1)

    @once
    def edges(self) -> Tensor:
        """(4, A) left, top, right and bottom of all anchors, each contiguous, so that a CPU can vectorise over them."""
        return self.boxes.T.contiguous()

    @once
    def finest_step(self) -> Tensor:
        """(2,) width and height of a cell of the finest level: a square on the image, whatever its aspect ratio."""
        return self.steps.amin(dim=0)

    @once
    def scaled_centres(self) -> Tensor:
        """(2, A) centres in units of `finest_step`, so that distances are those on the image."""
        return (self.centres / self.finest_step).T.contiguous()


Grid = AnchorGrid | PointGrid  # what a detector's predictions belong to


def decode_tanh(codes: Tensor, anchors: Tensor) -> Tensor:
    """The article's coding: centre and size move by at most half the anchor's size. (…, A, 4), (A, 4) -> (…, A, 4)."""
    anchors = box_convert(anchors, "xyxy", "cxcywh")  # (A, 4)
    reach = anchors[:, 2:].repeat(1, 2) / 2  # (A, 4)
    centre, size = (anchors + codes.tanh() * reach).split(2, dim=-1)  # (…, A, 2) each
    return torch.cat([centre - size / 2, centre + size / 2], dim=-1)


def encode_tanh(boxes: Tensor, anchors: Tensor, limit: float = 0.999) -> Tensor:
    """Inverse of `decode_tanh`; an offset beyond its reach becomes ±atanh(limit)."""
    centre, size = box_convert(anchors, "xyxy", "cxcywh").split(2, dim=-1)  # (A, 2) each
    box_centre, box_size = box_convert(boxes, "xyxy", "cxcywh").split(2, dim=-1)  # (…, A, 2) each
    ratio = torch.cat([(box_centre - centre) / size, box_size / size - 1], dim=-1) * 2  # (…, A, 4)
    return ratio.clamp(-limit, limit).atanh()


def shapes_of_a_cell() -> Tensor:
    """The article's 45 anchors of a cell (45, 4) xyxy, in units of the anchor size: 9 whole, 18 wide, 18 tall.

    Whole ones lie in a 3 × 3, halves in a 3 × 6 or 6 × 3 pattern, each moved on by a third to overlap its neighbour.
    """
    whole = torch.linspace(-1 / 3, 1 / 3, 3)
    half = torch.linspace(-1 / 6, 1 / 2 + 1 / 6, 6)

    def pattern(lefts: Tensor, tops: Tensor, width: float, height: float) -> Tensor:
        top, left = torch.meshgrid(tops, lefts, indexing="ij")
        return torch.stack([left, top, left + width, top + height], dim=-1).flatten(0, 1)  # (lefts × tops, 4)

    return torch.cat([pattern(whole, whole, 1, 1), pattern(whole, half, 1, 0.5), pattern(half, whole, 0.5, 1)])


@lru_cache
@torch.inference_mode(False)  # a cached grid may be needed for training, too
def article_grid(height: int = 224, width: int = 224, to_the_edge: bool = True) -> AnchorGrid:
    """The article's 3,150 anchors: 45 per cell on feature maps of 7, 4, 2 and 1 cells, clamped to the image.

    to_the_edge: spread the 7 × 7 cells over the whole image; the article sets them 1/8 apart and so leaves the right
    and the bottom eighth to the coarser maps.   height and width are ignored: this grid belongs to a squashed input.
    """
    boxes, steps = [], []
    for cells, size in ARTICLE_LEVELS:
        start = torch.arange(cells) * (1 / cells if to_the_edge else size)
        top, left = torch.meshgrid(start, start, indexing="ij")
        corner = torch.stack([left, top, left, top], dim=-1).view(-1, 1, 4)  # (cells², 1, 4)
        boxes.append((corner + shapes_of_a_cell() * size).clamp(0, 1).flatten(0, 1))  # (cells² × 45, 4)
        steps.append(torch.full((len(boxes[-1]), 2), 1 / cells))
    return AnchorGrid(torch.cat(boxes), torch.cat(steps), tuple(len(level) for level in boxes), "tanh")


@lru_cache
@torch.inference_mode(False)  # a cached grid may be needed for training, too
def pyramid_grid(height: int, width: int, strides: tuple[int, ...] = PYRAMID_STRIDES) -> AnchorGrid:
    """One square anchor around every point of `points.point_grid`, its side five strides."""
    size, boxes = torch.tensor([width, height] * 2), []
    for stride in strides:
        centre, half = cell_centres(height, width, stride), PYRAMID_ANCHOR * stride / 2
        boxes.append(torch.cat([centre - half, centre + half], dim=-1) / size)  # (rows × columns, 4)
    points = point_grid(height, width, strides)
    return AnchorGrid(torch.cat(boxes), points.steps, points.counts, "sides")
