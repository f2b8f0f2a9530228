"""Labelled scenes: sprites with light and shadow on a background.

The labels are exact to the pixel. A box holds what remains visible of an object: what is cut off by the image's edge
or hidden by an object before it does not count. An object of which too little would remain (`LEAST_VISIBLE`,
`LEAST_PIXELS`) is not drawn at all, so that nothing in an image goes unlabelled.
"""

import os
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.random import Generator

from odutils.classes import CLASSES
from odutils.errors import InputError
from odutils.files import DATA
from odutils.sample.backgrounds import paint_background

SPRITES = DATA / "sprites"
SMALLEST, LARGEST = 0.05, 0.70  # an object's longer side, as a share of the image's shorter side
LEAST_VISIBLE = 0.35  # share of an object's silhouette that must be seen
LEAST_PIXELS = 16
SHAPES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75))  # height and width, as shares of `size`
AIRBORNE = {CLASSES.index(name) + 1 for name in ("airplane", "kite")}  # all others stand on the ground, if there is one


class Sprite(NamedTuple):
    label: int  # 1…80
    pixels: np.ndarray  # (h, w, 4) uint8, RGB multiplied by alpha, then alpha; cropped to what is there


class Placed(NamedTuple):
    label: int
    layer: np.ndarray  # (H, W, 4) uint8: the sprite where it stands, alone; RGB multiplied by alpha, then alpha
    silhouette: float  # pixels that it would cover if nothing hid it and the image had no edges
    foot: float  # its lowest row; may lie below the image


class Scene(NamedTuple):  # objects from the nearest to the farthest
    image: np.ndarray  # (H, W, 3) uint8 RGB
    boxes: np.ndarray  # (M, 4) int64 pixel xyxy: columns x1…x2-1 and rows y1…y2-1 hold what is visible
    labels: np.ndarray  # (M,) int64
    masks: np.ndarray  # (M, H, W) bool: the visible part of each object, more than half opaque


def load_sprites(folder: str | os.PathLike = SPRITES) -> list[Sprite]:
    """Read `<class>--<anything>.webp` images with alpha. Raises InputError for a folder without any, a name that is
    no class of COCO, an image that cannot be read or has no alpha."""
    sprites = []
    for path in sorted(Path(folder).glob("*.webp")):
        name = path.name.split("--")[0].replace("_", " ")
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if name not in CLASSES:
            raise InputError(f"{path}: {name!r} is not one of COCO's classes: name sprites <class>--<anything>.webp")
        if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4:
            raise InputError(f"{path}: not an image with alpha: sprites are cut-out images")
        left, top, width, height = cv2.boundingRect(pixels[..., 3])
        pixels = cv2.cvtColor(pixels[top : top + height, left : left + width], cv2.COLOR_BGRA2RGBA)
        pixels[..., :3] = np.rint(pixels[..., :3] * (pixels[..., 3:] / 255.0))
        sprites.append(Sprite(CLASSES.index(name) + 1, pixels))
    if not sprites:
        raise InputError(f"{folder}: holds no sprites (*.webp): take data/sprites from the project's repository")
    return sprites


def draw_scene(rng: Generator, sprites: list[Sprite], size: int = 320, objects: tuple[int, int] = (1, 6)) -> Scene:
    """Draw one scene: `objects[0]` to `objects[1]` sprites (fewer where one would hide another) on a background.

    size: the image's longer side in pixels; it is square, 4:3 or 3:4.
    """
    height, width = (round(share * size) for share in SHAPES[rng.integers(len(SHAPES))])
    canvas, horizon = paint_background(rng, height, width)
    count = rng.integers(*objects, endpoint=True)
    placed = [_place(rng, sprites, height, width, horizon, subject=index == 0) for index in range(count)]
    if horizon is not None:
        placed.sort(key=lambda item: item.foot)  # what stands lower is nearer
    hidden, kept, masks = np.zeros((height, width), bool), [], []
    for item in reversed(placed):  # from the front
        solid = item.layer[..., 3] > 127  # (H, W)
        visible = solid & ~hidden
        if visible.sum() >= max(LEAST_PIXELS, LEAST_VISIBLE * item.silhouette):
            hidden |= solid
            kept.append(item)
            masks.append(visible)
    for item in reversed(kept):  # from the back
        _cast_shadow(canvas, item.layer[..., 3], flat=horizon is not None and item.label not in AIRBORNE)
        left, top, across, down = cv2.boundingRect(item.layer[..., 3])
        place = slice(top, top + down), slice(left, left + across)  # touch only the pixels that change
        canvas[place] *= 1 - item.layer[place][..., 3:] / np.float32(255)
        canvas[place] += item.layer[place][..., :3]
    masks = np.array(masks, bool).reshape(-1, height, width)  # (M, H, W)
    boxes = [cv2.boundingRect(mask.astype(np.uint8)) for mask in masks]
    boxes = np.array(boxes, np.int64).reshape(-1, 4)  # (M, 4) xywh
    boxes[:, 2:] += boxes[:, :2]
    labels = np.array([item.label for item in kept], np.int64)
    return Scene(np.rint(canvas).clip(0, 255).astype(np.uint8), boxes, labels, masks)


def _place(
    rng: Generator, sprites: list[Sprite], height: int, width: int, horizon: int | None, subject: bool
) -> Placed:
    """Choose a sprite, its size, pose and place. The subject of a scene is large; the sizes of the others are spread
    evenly over the doublings between `SMALLEST` and `LARGEST`, so that small ones are as frequent as large ones."""
    label, pixels = sprites[rng.integers(len(sprites))]
    scale = rng.uniform(0.3, LARGEST) if subject else SMALLEST * (LARGEST / SMALLEST) ** rng.random()
    factor = scale * min(height, width) / max(pixels.shape[:2])
    sides = [max(1, round(factor * side)) for side in pixels.shape[1::-1]]  # width, height
    pixels = cv2.resize(pixels, sides, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC)
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    light = pixels[..., :3] * rng.uniform(0.8, 1.15)
    pixels = np.dstack((np.minimum(light, pixels[..., 3:]).astype(np.uint8), pixels[..., 3]))  # never above alpha
    margin = 0.35 * np.array(sides)  # an edge of the image cuts off 15 % of a side at most
    x, y = rng.uniform(margin, np.array([width, height]) - margin)
    if horizon is not None:
        if label in AIRBORNE:
            y = max(rng.uniform(0.2, 0.9) * horizon, margin[1])
        else:  # the larger, the nearer, the lower its foot
            nearness = np.clip(0.05 + 0.8 * scale / LARGEST + rng.normal(0, 0.08), 0.02, 1.05)
            y = horizon + nearness * (height - horizon) - sides[1] / 2
    turn = cv2.getRotationMatrix2D((sides[0] / 2, sides[1] / 2), rng.normal(0, 5), 1.0)  # (2, 3)
    turn[:, 2] += x - sides[0] / 2, y - sides[1] / 2
    layer = cv2.warpAffine(np.ascontiguousarray(pixels), turn, (width, height))
    return Placed(label, layer, float((pixels[..., 3] > 127).sum()), y + sides[1] / 2)


def _cast_shadow(canvas: np.ndarray, alpha: np.ndarray, flat: bool) -> None:
    """Darken `canvas` (H, W, 3) where the object of `alpha` (H, W) keeps the light away, from the ground or a wall."""
    left, top, width, height = cv2.boundingRect(alpha)
    foot, reach = top + height, max(width, height)
    if flat:  # the silhouette laid down to the right, about the foot
        move = np.float32([[1, -0.35, 0.35 * foot], [0, 0.2, 0.8 * foot]])
    else:
        move = np.float32([[1, 0, 0.04 * reach], [0, 1, 0.05 * reach]])
    size = alpha.shape[1] // 2, alpha.shape[0] // 2  # soft enough to be drawn at half the size
    shadow = cv2.GaussianBlur(cv2.warpAffine(alpha, move / 2, size), (0, 0), 0.3 + 0.015 * reach)
    shadow = cv2.resize(shadow, alpha.shape[::-1])
    left, top, width, height = cv2.boundingRect(shadow)
    place = slice(top, top + height), slice(left, left + width)
    canvas[place] *= 1 - shadow[place][..., None] * np.float32(0.4 / 255)
