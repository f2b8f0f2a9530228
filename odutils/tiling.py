"""Tiling: overlapping windows of an image, each given to the network by itself, so that small objects are seen larger.

Also called slicing (SAHI, Akyon et al. 2022). The **views** of an image are the whole image, for large objects, and its
tiles. V views. Boxes are xyxy in pixels of the image.
"""

from math import ceil
from numbers import Integral

import numpy as np

OVERLAP = 0.2  # of a tile's side, shared by neighbours (SAHI's default): smaller objects are whole in one of the tiles
SMALLEST = 32  # px of a tile's longer side: smaller tiles, enlarged to the input, show blur
ROUNDING = 1e-9  # of floating-point arithmetic: what is as near as that to a whole number is that number


def check_tiles(tiles: int | str) -> None:
    """Raise ValueError unless `tiles` is a number of tiles or "auto"."""
    if tiles != "auto" and (not isinstance(tiles, Integral) or tiles < 1):
        raise ValueError(f"tiles is {tiles!r}: it must be a whole number, at least 1, or 'auto'")


def place_views(height: int, width: int, tiles: int | str, size: int) -> np.ndarray:
    """Where the views of an image lie: the whole image first, then its tiles row by row, all of one size.

    tiles: how many along the longer side, fewer where they would be smaller than SMALLEST; along the shorter side there
    are as many of about that length as cover it. 1 is the whole image alone. "auto": as many as show the network, whose
    input has `size` px, the image's full resolution.
    Returns (V, 4) int64 xyxy in pixels.
    """
    check_tiles(tiles)
    longer = max(height, width)
    most = max(1, int((longer / SMALLEST - OVERLAP) / (1 - OVERLAP) + ROUNDING))
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
    return max(1, ceil((length / side - OVERLAP) / (1 - OVERLAP) - ROUNDING))


def tile_side(length: int, count: int) -> float:
    """The side of `count` tiles that cover a length together."""
    return length / (count * (1 - OVERLAP) + OVERLAP)


def spread(length: int, side: float) -> tuple[list[int], int]:
    """Where the tiles along a length begin, and their common length: `side` px at most."""
    count = count_tiles(length, side)
    common = min(length, ceil(tile_side(length, count) - ROUNDING))
    return np.linspace(0, length - common, count).round().astype(int).tolist(), common
