"""Images in, detections out: `Predictor` fits images to the network, runs it, and goes back to the image's pixels.

N images, A anchors, C classes, K detections.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from odutils.devices import best_device
from odutils.images import Placement, fit, input_shape, list_images, read_image, to_rgb
from odutils.merging import merge
from odutils.model import Detector
from odutils.onnx_detector import OnnxDetector
from odutils.presets import DEFAULT_WEIGHTS, load_detector
from odutils.progress import bar
from odutils.selection import check_options, select_batch
from odutils.tiling import check_tiles, place_views

MANY_TILES = 50  # of an image from which on a bar is worth its line: seconds on a CPU


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes: np.ndarray  # (K, 4) float32 xyxy in pixels of the original image
    labels: np.ndarray  # (K,) int64, 1…C
    scores: np.ndarray  # (K,) float32, 0…1


class View(NamedTuple):
    """What goes through the network by itself: an image, or a part of it."""

    number: int  # of the image
    image: np.ndarray | Image.Image | str | Path
    window: np.ndarray | None  # (4,) xyxy in pixels of the image; None is the whole image


class Predictor:
    """A detector ready for use: images of any size in, `Detections` in their own pixels out.

        predictor = Predictor.from_weights()
        boxes, labels, scores = predictor("cat.jpg")

    An image is an (H, W, 3) uint8 RGB array, a PIL image or a path. It keeps its shape, unless the detector was trained
    on squashed images. `threshold` is the default of every call; without one, the weights file's own is taken.
    `batch_size` images or tiles at most are in the network, and in memory, at once.

    tiles: above 1 the network gets the whole image and overlapping tiles, so many along the longer side, and finds more
    of the small objects; "auto" takes as many tiles as show the full resolution. The time grows with their number.
    `tiles` may be changed later; so may `size`, the px of the input's longer side, unless images are squashed.
    """

    def __init__(
        self,
        detector: Detector | OnnxDetector,
        device: str | torch.device | None = None,
        threshold: float | None = None,
        tiles: int | str = 1,
    ):
        self.device = best_device(device)
        self.detector = detector.to(self.device).eval()
        self.threshold = detector.settings.threshold if threshold is None else threshold
        self.tiles = tiles
        check_options(self.threshold)
        check_tiles(tiles)
        self.classes = detector.settings.classes
        self.size = detector.settings.size
        self.batch_size = 8 if self.device.type == "cpu" else 32  # a CPU gains nothing from more

    @classmethod
    def from_weights(
        cls, path: str | Path | None = None, device: str | torch.device | None = None, tiles: int | str = 1
    ) -> "Predictor":
        """Load a weights file; without a path, the one that comes with the project. Raises InputError if it cannot.

        A file of `python -m odutils export`, whose name ends in .onnx, runs on the CPU.
        """
        if path and Path(path).suffix == ".onnx":
            return cls(OnnxDetector(path), device or "cpu", tiles=tiles)
        return cls(load_detector(path or DEFAULT_WEIGHTS), device, tiles=tiles)

    def __call__(self, image: np.ndarray | Image.Image | str | Path, **options) -> Detections:
        """One image. Options: those of `select`; None is the default.

        Raises TypeError or ValueError for what is no image or no option, InputError for a file that cannot be read.
        """
        return self.batch([image], **options)[0]

    def folder(self, folder: str | Path, **options) -> dict[Path, Detections]:
        """Every image of a folder."""
        paths = list_images(folder)
        return dict(zip(paths, self.batch(paths, **options), strict=True))

    @torch.inference_mode()
    def batch(
        self, images: Iterable[np.ndarray | Image.Image | str | Path], progress: bool = False, **options
    ) -> list[Detections]:
        """Several images, `batch_size` of them or of their tiles at a time; threads read and fit them.

        progress: show a bar for the tiles of a large image.
        """
        options = {"threshold": self.threshold} | {name: v for name, v in options.items() if v is not None}
        most = options.setdefault("max_detections", 100)
        check_options(options["threshold"], max_detections=most)
        for_merge = {name: v for name, v in options.items() if name not in ("threshold", "top_k")}
        # Each view keeps more: an object may have its best score from a tile, and its box from the whole image.
        in_views = self._detect_in_views(self._views(images, progress), options | {"max_detections": max(100, most)})
        found = []
        for _, of_image in groupby(in_views, key=lambda pair: pair[0].number):
            views, detections = zip(*of_image, strict=True)
            if len(views) == 1:
                found.append(Detections(*(column[:most] for column in detections[0])))
            else:
                windows = np.stack([view.window for view in views])  # (V, 4)
                found.append(Detections(*merge(windows, detections, self.size, **for_merge)))
        return found

    def _views(self, images: Iterable, progress: bool) -> Iterator[View]:
        """All views of the images, one image after the other. An image without tiles is not read yet."""
        for number, image in enumerate(images):
            if self.tiles == 1:
                yield View(number, image, None)
                continue
            image = as_array(image)
            windows = place_views(*image.shape[:2], self.tiles, self.size)
            for window in bar(windows, unit="tiles", show=progress and len(windows) > MANY_TILES, leave=False):
                yield View(number, image, window)

    def _detect_in_views(self, views: Iterator[View], options: dict) -> Iterator[tuple[View, Detections]]:
        """Each view with its detections, in the pixels of the view."""
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            while some := list(islice(views, self.batch_size)):
                yield from zip(some, self._detect(some, pool.map if len(some) > 1 else map, options), strict=True)

    def _detect(self, views: list[View], run, options: dict) -> list[Detections]:
        """Detections in a few views; those that fit the same input shape go through the network together.

        run: `map`, or that of a pool of threads.
        """
        fitted, placements, sizes = zip(*run(self._fit, views), strict=True)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, pixels in enumerate(fitted):
            by_shape.setdefault(pixels.shape, []).append(index)
        found: list[Detections | None] = [None] * len(views)
        for shape, indices in by_shape.items():
            pin = self.device.type == "cuda"  # memory from which a GPU fetches by itself
            stacked = torch.empty((len(indices), *shape), dtype=torch.uint8, pin_memory=pin)
            list(run(np.copyto, stacked.numpy(), [fitted[index] for index in indices]))
            inputs = stacked.to(self.device, non_blocking=True).permute(0, 3, 1, 2)  # (N, 3, height, width)
            logits, codes = self.detector(inputs)  # (N, A, C), (N, A, 4)
            selected = select_batch(logits, codes, self.detector.grid(*shape[:2]), **options)
            for index, one in zip(indices, selected, strict=True):
                found[index] = to_detections(*one, placements[index], sizes[index])
        return found

    def _fit(self, view: View) -> tuple[np.ndarray, Placement, tuple[int, int]]:
        """The network's input of a view (height, width, 3), where the view lies on it, and the view's (H, W)."""
        pixels = as_array(view.image)
        if view.window is not None:
            left, top, right, bottom = view.window
            pixels = pixels[top:bottom, left:right]
        size, squash = pixels.shape[:2], self.detector.settings.squash
        fitted, placement = fit(pixels, self.size, squash, input_shape(*size, self.size, squash))
        return fitted, placement, size


def to_detections(boxes: Tensor, labels: Tensor, scores: Tensor, placement: Placement, size: tuple) -> Detections:
    """Detections on the input (K, 4) in 0…1 -> on the image of size (H, W, …), in its pixels, inside it."""
    height, width = size[:2]
    boxes = placement.to_image(boxes.float().cpu().numpy()).clip(0, [width, height] * 2).astype(np.float32)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # (K,), False for what lies in the border beside the image
    return Detections(boxes[inside], labels.cpu().numpy()[inside], scores.float().cpu().numpy()[inside])


def as_array(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """A path, a PIL image, or an array (checked) as an (H, W, 3) uint8 RGB array."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if not isinstance(image, np.ndarray):
        hints = {
            type(None): "cv2.imread returns None for a file that it cannot read; pass the path itself",
            list: "`batch` takes a list of images",
            bytes: "pass Image.open(io.BytesIO(…)) for the content of a file",
        }
        hint = hints.get(type(image), "pass an (H, W, 3) uint8 RGB array, a PIL image or a path")
        raise TypeError(f"{'None' if image is None else f'a {type(image).__name__}'} is no image: {hint}")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image is an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
    return image
