"""An image and its boxes, changed at random: never the same example twice, always the same for the same seed.

Geometry first, on the original pixels, then one resize, then colour on the small image. Boxes are xyxy in pixels.
"""

import sys
import warnings

import cv2
import numpy as np

from odutils.images import GREY, fit

KEEP = 1 / 3  # a box that keeps less of its area than this is dropped: often too little is left to recognise
LEVELS = np.arange(256, dtype=np.uint8).reshape(1, 256, 1)  # all that a pixel's channel can be


def import_imgaug():
    """imgaug 0.4.0 uses names that numpy 2 took away: put them back, then import it."""
    if sys.modules.get("imgaug.augmenters"):  # the usual case, once an image
        return sys.modules["imgaug"]
    if not hasattr(np, "sctypes"):
        np.sctypes = {
            "int": [np.int8, np.int16, np.int32, np.int64],
            "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
            "float": [np.float16, np.float32, np.float64],
            "complex": [np.complex64, np.complex128],
            "others": [bool, object, bytes, str, np.void],
        }
    for name, kind in (("bool", bool), ("complex", complex)):
        if name not in np.__dict__:
            setattr(np, name, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import imgaug.augmenters
    return imgaug


class Augment:
    """Flip, crop or zoom out, resize, colour and cutout, drawn from (seed, epoch, index) alone.

    size: pixels of the square input.   squash: as in `images.fit`.   crop: whether to crop and to zoom out at all.
    imgaug's functions do the work; its augmenter objects, which draw the numbers too, cost more than the images do.
    It holds plain values only, so that it can be sent to loader processes that are not forked.
    """

    def __init__(self, size: int, squash: bool = False, seed: int = 0, crop: bool = True):
        self.size, self.squash, self.seed, self.crop = size, squash, seed, crop
        import_imgaug()  # a missing package is noticed now, not in a loader process

    def __call__(self, image: np.ndarray, boxes: np.ndarray, epoch: int, index: int) -> tuple:
        """image: (H, W, 3) uint8.   boxes: (K, 4) float32 xyxy in pixels.

        Returns the input (size, size, 3) uint8, the boxes (K, 4) in 0…1 of it, clipped, and which were kept (K,).
        """
        chance = np.random.default_rng([self.seed, epoch, index])
        changed, moved = self.geometry(image, boxes, chance)
        boxes, kept = clip_boxes(moved, *changed.shape[:2])
        fitted, placement = fit(changed, self.size, self.squash, quick=True)
        return self.colour(fitted, chance), placement.to_input(boxes), kept

    def geometry(self, image: np.ndarray, boxes: np.ndarray, chance: np.random.Generator) -> tuple:
        """Flip half of the images; crop 60 % of them, zoom out of 16 %. Returns image and boxes, unclipped."""
        imgaug = import_imgaug().augmenters
        height, width = image.shape[:2]
        if chance.random() < 0.5:
            image = imgaug.flip.fliplr(image)
            boxes = np.float32([width, 0, width, 0]) + boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1])
        kind, shares = chance.random() if self.crop else 1, chance.random(4)
        if kind < 0.6:  # each side by itself: at least a third of the length stays
            left, top, right, bottom = (shares * 0.33 * [width, height, width, height]).astype(int)
            image = image[top : height - bottom, left : width - right]
            boxes = boxes - np.float32([left, top, left, top])
        elif kind < 0.76:
            left, top, right, bottom = (shares * 0.5 * [width, height, width, height]).astype(int)
            image = imgaug.size.pad(image, top, right, bottom, left, cval=GREY)
            boxes = boxes + np.float32([left, top, left, top])
        return image, boxes

    def colour(self, image: np.ndarray, chance: np.random.Generator) -> np.ndarray:
        """Brightness (of each channel by itself now and then), contrast, saturation, and one to three grey patches."""
        imgaug = import_imgaug().augmenters
        levels = LEVELS  # what becomes of each of them, so that the image itself is changed once
        if chance.random() < 0.7:
            factors = chance.uniform(0.65, 1.35, 3)
            one_for_all = chance.random() < 0.7
            levels = levels if one_for_all else np.repeat(levels, 3, axis=2)  # (1, 256, 3)
            levels = imgaug.arithmetic.multiply_scalar(levels, factors[0] if one_for_all else factors)
        if chance.random() < 0.4:
            levels = imgaug.contrast.adjust_contrast_linear(levels, chance.uniform(0.7, 1.4))
        if levels is not LEVELS:
            image = cv2.LUT(image, levels)
        if chance.random() < 0.25:
            image = saturate(image, chance.uniform(0.3, 1.6))
        if chance.random() < 0.25:
            for _ in range(chance.integers(1, 4)):
                x, y = chance.random(2) * self.size
                half_width, half_height = chance.uniform(0.025, 0.1, 2) * self.size
                corners = x - half_width, y - half_height, x + half_width, y + half_height
                image = imgaug.arithmetic.cutout(image, *corners, cval=GREY)
        return image


def saturate(image: np.ndarray, factor: float) -> np.ndarray:
    """Mix an image (H, W, 3) uint8 RGB with its grey self: 0 is grey, 1 the image, above 1 more colourful.

    As imgaug's `pillike.enhance_color`, whose way through PIL takes longer than everything else here.
    """
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return cv2.addWeighted(image, factor, grey, 1 - factor, 0)


def clip_boxes(boxes: np.ndarray, height: int, width: int, keep: float = KEEP) -> tuple[np.ndarray, np.ndarray]:
    """Cut boxes (K, 4) xyxy off at the image's edge.

    Returns them (K, 4) float32, and which (K,) keep at least the share `keep` of their area, and some area at all.
    """
    clipped = np.clip(boxes, 0, np.float32([width, height, width, height]), dtype=np.float32)
    before, after = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, clipped))
    return clipped, (after > 0) & (after >= keep * before)
