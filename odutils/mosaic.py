"""Mosaic: one example of four images (Bochkovskiy et al. 2020, YOLOv4, section 3.3)."""

import numpy as np
import torch

from odutils.augmentation import clip_boxes
from odutils.datasets import CocoDetections
from odutils.images import resize


class WithMosaic(CocoDetections):
    """CocoDetections, but a share of the examples are four images, a part of each filling its quarter of the input.

    The four share the classes that their source labels, so that `known` holds for the whole. For training only, and not
    for its last epochs (Ge et al. 2021, YOLOX, section 2.1): no photograph looks like that.
    share: 0…1, of the examples.   The rest: as in CocoDetections; `augment` is needed.
    """

    def __init__(self, *args, share: float = 0.5, **options):
        super().__init__(*args, **options)
        self.share = share
        sources = [self.source(index) for index in range(len(self.ids))]
        self.mates = {source: np.flatnonzero([s == source for s in sources]) for source in set(sources)}

    def __getitem__(self, key: int | tuple[int, int]) -> tuple:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        chance = np.random.default_rng([self.augment.seed, epoch, index, 1])  # not the numbers of a single image
        if chance.random() >= self.share:
            return super().__getitem__(key)
        mates = self.mates[self.source(index)]
        canvas = np.empty((self.size, self.size, 3), np.uint8)
        x, y = (chance.uniform(0.35, 0.65, 2) * self.size).astype(int)
        corners = ((0, 0, x, y), (x, 0, self.size, y), (0, y, x, self.size), (x, y, self.size, self.size))
        boxes, labels = [], []
        for (left, top, right, bottom), which in zip(corners, [index, *chance.choice(mates, 3)], strict=True):
            image, moved = self.augment.geometry(self.image(which), self.boxes[which], chance)
            canvas[top:bottom, left:right], moved, kept = cut_to_shape(image, moved, right - left, bottom - top, chance)
            boxes.append((moved[kept] + np.float32([left, top, left, top])) / self.size)
            labels.append(self.labels[which][kept])
        image = torch.from_numpy(self.augment.colour(canvas, chance)).permute(2, 0, 1)  # (3, S, S)
        boxes, labels = (torch.from_numpy(np.concatenate(parts)) for parts in (boxes, labels))
        return image, boxes, labels, self.known(index)


def cut_to_shape(image: np.ndarray, boxes: np.ndarray, width: int, height: int, chance: np.random.Generator) -> tuple:
    """The largest part of an image with the shape of width × height, at a place left to chance, resized to it.

    Returns the part, the boxes (K, 4) xyxy in its pixels, clipped, and which were kept (K,).
    """
    scale = max(height / image.shape[0], width / image.shape[1])
    seen = np.maximum(1, [int(height / scale), int(width / scale)])
    top, left = (chance.random(2) * (image.shape[:2] - seen)).astype(int)
    part = image[top : top + seen[0], left : left + seen[1]]
    clipped, kept = clip_boxes(boxes - np.float32([left, top, left, top]), *part.shape[:2])
    scales = np.float32([width / part.shape[1], height / part.shape[0]] * 2)
    return resize(part, height, width, quick=True), clipped * scales, kept
