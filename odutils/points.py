"""Points, and how a box is encoded as distances from one: the targets of box regression without anchors.

A point is the centre of a cell of a feature map. The network makes one prediction per point: the scores of the classes,
and the distances to the four sides of the object's box (FCOS, Tian et al. 2019). Boxes are xyxy in 0…1 of the network's
input. Points stand level after level from fine to coarse, row by row. A points, L levels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

PYRAMID_STRIDES = (8, 16, 32, 64)  # pixels between neighbouring points of a level
STRIDES_FROM = {8: PYRAMID_STRIDES, 4: (4, *PYRAMID_STRIDES)}  # by the stride of the finest level


def once(compute: Callable) -> cached_property:
    """A property that is computed once; if that happens in inference mode, training can still use the tensor."""
    return cached_property(torch.inference_mode(False)(compute))


@dataclass(frozen=True)
class PointGrid:
    """All points of a detector for one input size, and the coding of boxes as distances from them."""

    centres: Tensor  # (A, 2) x and y, 0…1
    steps: Tensor  # (A, 2) width and height of the point's cell, 0…1
    counts: tuple[int, ...]  # points of each level, sum A

    def __len__(self) -> int:
        return len(self.centres)

    def to(self, device: torch.device | str) -> "PointGrid":
        return PointGrid(self.centres.to(device), self.steps.to(device), self.counts)

    def pick(self, index: Tensor) -> "PointGrid":
        """The grid with only the points `index` (K,), in that order; it counts as one level."""
        return PointGrid(self.centres[index], self.steps[index], (len(index),))

    @once
    def frame(self) -> tuple[Tensor, Tensor]:
        """See `sides_frame`: kept, so that decoding takes two operations."""
        return sides_frame(self.centres, self.steps)

    @once
    def levels(self) -> Tensor:
        """(A,) number of each point's level, from fine to coarse."""
        counts = torch.tensor(self.counts, device=self.steps.device)
        return torch.arange(len(counts), device=counts.device).repeat_interleave(counts, output_size=len(self))

    @once
    def level_steps(self) -> Tensor:
        """(L, 2) width and height of a cell of each level."""
        firsts = torch.tensor(self.counts).cumsum(0) - torch.tensor(self.counts)  # (L,)
        return self.steps[firsts.to(self.steps.device)]

    def decode(self, codes: Tensor) -> Tensor:
        """Box regression outputs (…, A, 4) -> boxes (…, A, 4) xyxy, 0…1; parts outside the image are not cut off."""
        origin, direction = self.frame
        return torch.addcmul(origin, F.softplus(codes), direction)

    def encode(self, boxes: Tensor) -> Tensor:
        """Boxes (…, A, 4), one per point -> the codes that decode to them, if the point lies inside."""
        return encode_sides(boxes, self.centres, self.steps)


def decode_sides(codes: Tensor, centres: Tensor, steps: Tensor) -> Tensor:
    """Distances from the centre of a cell to a box's four sides, in cells, after softplus: always a box, of any size.

    codes: (…, A, 4) left, top, right, bottom.   centres, steps: (A, 2).   Returns (…, A, 4) xyxy.
    """
    origin, direction = sides_frame(centres, steps)
    return torch.addcmul(origin, F.softplus(codes), direction)


def sides_frame(centres: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
    """Where the four distances begin, and what one cell of distance adds: (A, 4) each."""
    return centres.repeat(1, 2), torch.cat([-steps, steps], dim=-1)


def encode_sides(boxes: Tensor, centres: Tensor, steps: Tensor, smallest: float = 1e-3) -> Tensor:
    """Inverse of `decode_sides`; a side on the wrong side of the centre becomes `smallest` cells."""
    distance = torch.cat([(centres - boxes[..., :2]) / steps, (boxes[..., 2:] - centres) / steps], dim=-1)  # (…, A, 4)
    distance = distance.clamp(min=smallest)
    return distance + torch.log(-torch.expm1(-distance))  # the inverse of softplus, stable for large distances


def cell_centres(height: int, width: int, stride: int) -> Tensor:
    """The middle of every cell of a feature map, row by row: (rows × columns, 2) x and y in pixels of the input."""
    rows, columns = -(-height // stride), -(-width // stride)
    y, x = torch.meshgrid(torch.arange(rows) + 0.5, torch.arange(columns) + 0.5, indexing="ij")
    return torch.stack([x, y], dim=-1).view(-1, 2) * stride  # (rows × columns, 2)


@lru_cache
@torch.inference_mode(False)  # a cached grid may be needed for training, too
def point_grid(height: int, width: int, strides: tuple[int, ...] = PYRAMID_STRIDES) -> PointGrid:
    """One point per cell of the feature maps that a height × width px input has at these strides."""
    size, centres, steps = torch.tensor([width, height]), [], []
    for stride in strides:
        centres.append(cell_centres(height, width, stride) / size)  # (rows × columns, 2)
        steps.append((stride / size).expand(len(centres[-1]), 2))
    return PointGrid(torch.cat(centres), torch.cat(steps), tuple(len(level) for level in centres))
