"""From predictions to detections: threshold, keep the best, decode, remove duplicates by non-maximum suppression (NMS).

N images, A anchors, C classes, K detections.
"""

from numbers import Real

import torch
from torch import Tensor
from torchvision.ops import batched_nms, nms

from odutils.anchors import Grid

SAME_CLASS_IOU = 0.5  # two boxes of one class that overlap by more are one object; chosen on `dev` (0.6: more doubles)
ANY_CLASS_IOU = 0.7  # shown to people, two boxes of different classes that overlap by more are one object, too
EVALUATED = 0.01  # what evaluation keeps: average precision wants the whole curve


def select(
    logits: Tensor,
    codes: Tensor,
    grid: Grid,
    threshold: float = 0.35,
    iou_threshold: float = SAME_CLASS_IOU,
    class_agnostic: bool = True,
    max_detections: int = 100,
    top_k: int = 400,
) -> tuple[Tensor, Tensor, Tensor]:
    """The detections of one image: threshold, keep the best, decode, non-maximum suppression (NMS).

    logits: (A, C).   codes: (A, 4).   threshold: lowest score.   iou_threshold: of NMS within a class.
    class_agnostic: afterwards NMS once more over all classes together, at ANY_CLASS_IOU.
    max_detections: that are returned at most.   top_k: the highest scores that go into NMS.
    Returns boxes (K, 4) xyxy in 0…1 of the input, labels (K,), scores (K,), best first.
    Raises ValueError for an option out of range.
    """
    check_options(threshold, iou_threshold, max_detections, top_k)
    flat = logits.flatten()  # (A C,)
    above = (flat > to_logit(threshold)).nonzero().squeeze(1)  # (scores above,)
    values, order = flat[above].sort(descending=True, stable=True)
    above, values = above[order[:top_k]], values[:top_k]  # (candidates,) each
    anchor, column = above // logits.shape[1], above % logits.shape[1]
    boxes = grid.pick(anchor).decode(codes[anchor]).clamp(0, 1)  # (candidates, 4)
    # float64: batched_nms shifts each class to a region of its own, and in float32 a small box would change on the way.
    kept = batched_nms(boxes.double(), values.double(), column, iou_threshold)
    if class_agnostic:
        kept = kept[nms(boxes[kept].double(), values[kept].double(), ANY_CLASS_IOU)]
    kept = kept[:max_detections]
    return boxes[kept], column[kept] + 1, values[kept].sigmoid()


def select_batch(logits: Tensor, codes: Tensor, grid: Grid, **options) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What `select` returns for each of N images, on the CPU.   logits: (N, A, C).   codes: (N, A, 4).

    On a CUDA GPU all images go together, because each step waits for the device. On the CPU they go one by one, because
    NMS compares every pair of boxes there, of different images, too. MPS has no float64, so that the CPU works for it.
    """
    if logits.device.type == "cuda":
        return select_together(logits, codes, grid, **options)
    grid = grid.to("cpu")
    return [select(*one, grid, **options) for one in zip(logits.cpu(), codes.cpu(), strict=True)]


def select_together(
    logits: Tensor,
    codes: Tensor,
    grid: Grid,
    threshold: float = 0.35,
    iou_threshold: float = SAME_CLASS_IOU,
    class_agnostic: bool = True,
    max_detections: int = 100,
    top_k: int = 400,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """`select` for N images with one NMS and one copy to the CPU.   logits: (N, A, C).   codes: (N, A, 4)."""
    check_options(threshold, iou_threshold, max_detections, top_k)
    classes = logits.shape[2]
    flat = logits.flatten(1)  # (N, A C)
    image, above = (flat > to_logit(threshold)).nonzero(as_tuple=True)  # (scores above,) each, image after image
    values = flat[image, above]
    order = values.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]  # image after image again, and best first in each
    order = order[rank_in_image(image) < top_k]  # (candidates,)
    image, above, values = image[order], above[order], values[order]
    anchor, column = above // classes, above % classes
    boxes = grid.pick(anchor).decode(codes[image, anchor]).clamp(0, 1)  # (candidates, 4)
    kept = batched_nms(boxes.double(), values.double(), image * classes + column, iou_threshold)
    if class_agnostic:
        kept = kept[batched_nms(boxes[kept].double(), values[kept].double(), image[kept], ANY_CLASS_IOU)]
    kept = kept.sort().values  # the candidates' order
    kept = kept[rank_in_image(image[kept]) < max_detections]
    columns = (image[kept, None], column[kept, None] + 1, values[kept, None].sigmoid(), boxes[kept])
    found = torch.cat(columns, dim=1).cpu()  # (K of all images, 7)
    counts = found[:, 0].long().bincount(minlength=len(logits)).tolist()
    return [(one[:, 3:], one[:, 1].long(), one[:, 2]) for one in found.split(counts)]


def rank_in_image(image: Tensor) -> Tensor:
    """0, 1, 2, … for the entries of each image.   image: (K,) its number, ascending."""
    return torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)


def to_logit(score: float) -> float:
    """Logits are compared with it, so that no sigmoid of all scores is needed."""
    return torch.tensor(score, dtype=torch.float64).logit().item()


def check_options(threshold: float, iou_threshold: float = 0.5, max_detections: int = 1, top_k: int = 1) -> None:
    """Raise ValueError for an option of `select` that is out of its range."""
    for name, value in (("threshold", threshold), ("iou_threshold", iou_threshold)):
        if not isinstance(value, Real) or not 0 <= value <= 1:
            raise ValueError(f"{name} is {value!r}: it must be a number from 0 to 1")
    for name, value in (("max_detections", max_detections), ("top_k", top_k)):
        if not isinstance(value, Real) or value < 1:
            raise ValueError(f"{name} is {value!r}: it must be at least 1")
