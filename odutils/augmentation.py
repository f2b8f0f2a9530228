"""A picture and its boxes, changed at random: never the same example twice, always the same for the same seed.

Geometry first, on the original pixels, then one resize, then colour on the small picture. Boxes are xyxy in pixels.
"""

import warnings

import numpy as np

from odutils.pictures import GREY, fit

KEEP = 1 / 3  # a box that keeps less of its area than this is dropped: what is left of it is no longer recognisable


def import_imgaug():
    """imgaug 0.4.0 uses names that numpy 2 took away: put them back, then import it."""
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

    size: pixels of the square input.   squash: as in `pictures.fit`.
    """

    def __init__(self, size: int, squash: bool = False, seed: int = 0):
        self.size, self.squash, self.seed = size, squash, seed
        self.imgaug = import_imgaug()
        iaa = self.imgaug.augmenters
        crop = iaa.Crop(percent=(0, 0.33), keep_size=False)  # each side by itself: at least a third of it stays
        zoom_out = iaa.Pad(percent=(0, 0.5), pad_mode="constant", pad_cval=GREY, keep_size=False)
        self.geometry = iaa.Sequential([iaa.Fliplr(0.5), iaa.Sometimes(0.6, crop, iaa.Sometimes(0.4, zoom_out))])
        self.colour = iaa.Sequential(
            [
                iaa.Sometimes(0.7, iaa.Multiply((0.65, 1.35), per_channel=0.3)),
                iaa.Sometimes(0.4, iaa.LinearContrast((0.7, 1.4))),
                iaa.Sometimes(0.25, iaa.MultiplySaturation((0.3, 1.6))),
                iaa.Sometimes(0.25, iaa.Cutout(nb_iterations=(1, 3), size=(0.05, 0.2), squared=False, cval=GREY)),
            ]
        )

    def __call__(self, picture: np.ndarray, boxes: np.ndarray, epoch: int, index: int) -> tuple:
        """picture: (H, W, 3) uint8.   boxes: (K, 4) float32 xyxy in pixels.

        Returns the input (size, size, 3) uint8, the boxes (K, 4) in 0…1 of it, clipped, and which of them were kept (K,).
        """
        self.imgaug.seed(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1).item())
        changed, moved = self.geometry(
            image=picture, bounding_boxes=self.imgaug.BoundingBoxesOnImage.from_xyxy_array(boxes, shape=picture.shape)
        )
        boxes, kept = clip_boxes(moved.to_xyxy_array(), *changed.shape[:2])
        fitted, placement = fit(changed, self.size, self.squash)
        return self.colour(image=fitted), placement.to_input(boxes), kept


def clip_boxes(boxes: np.ndarray, height: int, width: int, keep: float = KEEP) -> tuple[np.ndarray, np.ndarray]:
    """Cut boxes (K, 4) xyxy off at the picture's edge.

    Returns them (K, 4) float32, and which (K,) keep at least the share `keep` of their area, and some area at all.
    """
    clipped = boxes.astype(np.float32).copy()
    clipped[:, 0::2] = clipped[:, 0::2].clip(0, width)
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, height)
    before, after = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (boxes, clipped))
    return clipped, (after > 0) & (after >= keep * before)
