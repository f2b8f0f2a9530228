"""From predictions to detections: keep what is likely enough, decode it, suppress the doubles, go back to the image.

N images, A anchors, C classes, K detections.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import batched_nms, nms

from odutils.anchors import AnchorGrid
from odutils.images import fit, input_shape, list_images, read_image, to_rgb
from odutils.model import Detector
from odutils.onnx_detector import ExportedDetector
from odutils.presets import DEFAULT_WEIGHTS, load_detector

SAME_CLASS_IOU = 0.5  # two boxes of one class that overlap by more are one object; chosen on `dev` (0.6: more doubles)
ANY_CLASS_IOU = 0.7  # shown to people, two boxes of different classes that overlap by more are one object, too
EVALUATED = 0.01  # what evaluation keeps: average precision wants the whole curve


class Detections(NamedTuple):
    """What was found in one image, best first."""

    boxes: np.ndarray  # (K, 4) float32 xyxy in pixels of the original image
    labels: np.ndarray  # (K,) int64, 1…C
    scores: np.ndarray  # (K,) float32, 0…1


def select(
    logits: Tensor,
    codes: Tensor,
    grid: AnchorGrid,
    threshold: float = 0.35,
    iou_threshold: float = SAME_CLASS_IOU,
    class_agnostic: bool = True,
    max_detections: int = 100,
    top_k: int = 400,
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one image: threshold, decode what is left, suppress.

    logits: (A, C).   codes: (A, 4).   class_agnostic: boxes of different classes compete at ANY_CLASS_IOU.
    max_detections: kept at last.   top_k: the highest scores that go into suppression.
    Returns boxes (K, 4) xyxy in 0…1 of the input, labels (K,), scores (K,), best first.
    """
    flat = logits.flatten()  # (A C,)
    lowest = torch.tensor(threshold, dtype=torch.float64).logit().item()  # compared as logits: no sigmoid of them all
    above = (flat > lowest).nonzero().squeeze(1)  # (answers above,)
    values, order = flat[above].sort(descending=True, stable=True)
    above, scores = above[order[:top_k]], values[:top_k].sigmoid()
    anchor, column = above // logits.shape[1], above % logits.shape[1]
    boxes = grid.pick(anchor).decode(codes[anchor]).clamp(0, 1)  # (top_k, 4)
    kept = batched_nms(boxes, scores, column, iou_threshold)
    if class_agnostic:
        kept = kept[nms(boxes[kept], scores[kept], ANY_CLASS_IOU)]
    kept = kept[:max_detections]
    return boxes[kept], column[kept] + 1, scores[kept]


class Predictor:
    """A detector ready for use: images of any size in, `Detections` in their own pixels out.

        predictor = Predictor.from_weights()
        boxes, labels, scores = predictor("cat.jpg")

    The image keeps its shape, unless the detector was trained on squashed ones. `threshold` is the default of every
    call; without one, the weights file's own is taken.
    """

    def __init__(
        self,
        detector: Detector | ExportedDetector,
        device: str | torch.device | None = None,
        threshold: float | None = None,
    ):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.detector = detector.to(self.device).eval()
        self.threshold = detector.settings.threshold if threshold is None else threshold
        self.classes, self.size = detector.settings.classes, detector.settings.size

    @classmethod
    def from_weights(cls, path: str | Path | None = None, device: str | torch.device | None = None) -> "Predictor":
        """Load a weights file; without a path, the one that comes with the project. Raises InputError if it cannot.

        A file of `export.py`, whose name ends in .onnx, runs on the CPU.
        """
        if path and Path(path).suffix == ".onnx":
            return cls(ExportedDetector(path), device or "cpu")
        return cls(load_detector(path or DEFAULT_WEIGHTS), device)

    def __call__(self, image: np.ndarray | Image.Image | str | Path, **options) -> Detections:
        """One image: an (H, W, 3) uint8 RGB array, a PIL image or a path. Options: those of `select`."""
        return self.batch([image], **options)[0]

    def folder(self, folder: str | Path, **options) -> dict[Path, Detections]:
        """Every image of a folder."""
        return {path: self(path, **options) for path in list_images(folder)}

    @torch.inference_mode()
    def batch(self, images: Iterable[np.ndarray | Image.Image | str | Path], **options) -> list[Detections]:
        """Several images; those that fit the same input shape go through the network together."""
        images = [as_array(image) for image in images]
        squash = self.detector.settings.squash
        by_shape: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(images):
            by_shape.setdefault(input_shape(*image.shape[:2], self.size, squash), []).append(index)
        found: list[Detections | None] = [None] * len(images)
        for shape, indices in by_shape.items():
            inputs, placements = zip(*(fit(images[i], self.size, squash, shape) for i in indices), strict=True)
            stacked = torch.from_numpy(np.stack(inputs)).to(self.device).permute(0, 3, 1, 2)  # (N, 3, height, width)
            logits, codes = self.detector(stacked)  # (N, A, C), (N, A, 4)
            grid = self.detector.grid(*shape)
            for row, (index, placement) in enumerate(zip(indices, placements, strict=True)):
                selected = select(logits[row], codes[row], grid, **{"threshold": self.threshold, **options})
                found[index] = to_detections(*selected, placement, images[index].shape)
        return found


def to_detections(boxes: Tensor, labels: Tensor, scores: Tensor, placement, shape: tuple[int, ...]) -> Detections:
    """Detections on the input (K, 4) in 0…1 -> on the image of `shape` (H, W, …), in its pixels, inside it."""
    height, width = shape[:2]
    boxes = placement.to_image(boxes.float().cpu().numpy()).clip(0, [width, height] * 2).astype(np.float32)
    inside = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)  # (K,), False for what lies in the border beside the image
    return Detections(boxes[inside], labels.cpu().numpy()[inside], scores.float().cpu().numpy()[inside])


def as_array(image: np.ndarray | Image.Image | str | Path) -> np.ndarray:
    """A path, a PIL image, or an array (checked) as an (H, W, 3) uint8 RGB array."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise ValueError(f"an image is an (H, W, 3) uint8 RGB array, not {image.shape} {image.dtype}")
    return image
