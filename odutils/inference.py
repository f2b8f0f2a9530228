"""Images in, detections out: `Predictor` fits images to the network, runs it, and goes back to the image's pixels.

N images, A anchors, C classes, K detections.
"""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from odutils.devices import best_device
from odutils.images import Placement, fit, input_shape, list_images, read_image, to_rgb
from odutils.model import Detector
from odutils.onnx_detector import OnnxDetector
from odutils.presets import DEFAULT_WEIGHTS, load_detector
from odutils.selection import check_options, select_batch


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes: np.ndarray  # (K, 4) float32 xyxy in pixels of the original image
    labels: np.ndarray  # (K,) int64, 1…C
    scores: np.ndarray  # (K,) float32, 0…1


class Predictor:
    """A detector ready for use: images of any size in, `Detections` in their own pixels out.

        predictor = Predictor.from_weights()
        boxes, labels, scores = predictor("cat.jpg")

    An image is an (H, W, 3) uint8 RGB array, a PIL image or a path. It keeps its shape, unless the detector was trained
    on squashed images. `threshold` is the default of every call; without one, the weights file's own is taken.
    `batch_size` images at most are in the network, and in memory, at once.
    """

    def __init__(
        self,
        detector: Detector | OnnxDetector,
        device: str | torch.device | None = None,
        threshold: float | None = None,
    ):
        self.device = best_device(device)
        self.detector = detector.to(self.device).eval()
        self.threshold = detector.settings.threshold if threshold is None else threshold
        check_options(self.threshold)
        self.classes = detector.settings.classes
        self.size = detector.settings.size
        self.batch_size = 8 if self.device.type == "cpu" else 32  # a CPU gains nothing from more

    @classmethod
    def from_weights(cls, path: str | Path | None = None, device: str | torch.device | None = None) -> "Predictor":
        """Load a weights file; without a path, the one that comes with the project. Raises InputError if it cannot.

        A file of `python -m odutils export`, whose name ends in .onnx, runs on the CPU.
        """
        if path and Path(path).suffix == ".onnx":
            return cls(OnnxDetector(path), device or "cpu")
        return cls(load_detector(path or DEFAULT_WEIGHTS), device)

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
    def batch(self, images: Iterable[np.ndarray | Image.Image | str | Path], **options) -> list[Detections]:
        """Several images, `batch_size` at a time; threads read and fit them."""
        options = {"threshold": self.threshold} | {name: v for name, v in options.items() if v is not None}
        images = iter(images)
        found = []
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            while some := list(islice(images, self.batch_size)):
                found += self._detect(some, pool.map if len(some) > 1 else map, options)
        return found

    def _detect(self, images: list, run, options: dict) -> list[Detections]:
        """Detections in a few images; those that fit the same input shape go through the network together.

        run: `map`, or that of a pool of threads.
        """
        fitted, placements, sizes = zip(*run(self._fit, images), strict=True)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, pixels in enumerate(fitted):
            by_shape.setdefault(pixels.shape, []).append(index)
        found: list[Detections | None] = [None] * len(images)
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

    def _fit(self, image) -> tuple[np.ndarray, Placement, tuple[int, int]]:
        """The network's input of an image (height, width, 3), where the image lies on it, and the image's (H, W)."""
        pixels = as_array(image)
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
