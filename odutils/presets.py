"""The presets, and detectors to and from a file.

To have another preset, add a function of (classes, pretrained) to PRESETS; if it also takes `finest_stride`, add its
name to WITH_STRIDE_4.
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from odutils import __version__
from odutils.anchors import article_grid, pyramid_grid
from odutils.article_weights import is_published, published_grid, translate
from odutils.classes import CLASSES
from odutils.errors import InputError
from odutils.files import DATA
from odutils.fine import FineBackbone, FineHead
from odutils.model import ArticleHead, Detector, LiteBackbone, PyramidHead, resnet34_backbone
from odutils.points import STRIDES_FROM, point_grid
from odutils.settings import Settings
from odutils.weights import load_weights, save_weights

PUBLISHED = "as published"  # metadata "anchors" of a detector from the article's own weights
DEFAULT_WEIGHTS = DATA / "weights" / "pyramid.safetensors"


def article(classes: tuple[str, ...], pretrained: bool) -> Detector:
    """ResNet34 at 224 px, squashed; feature maps of 7, 4, 2 and 1 cells a side; 45 anchors a cell."""
    return Detector(
        backbone=resnet34_backbone(pretrained),
        head=ArticleHead(len(classes)),
        grid=article_grid,
        mean=[123.675, 116.28, 103.53],  # ImageNet's, as torchvision's ResNets expect
        std=[58.395, 57.12, 57.375],
        settings=Settings(preset="article", classes=classes, size=224, squash=True),
    )


def pyramid(classes: tuple[str, ...], pretrained: bool, finest_stride: int = 8) -> Detector:
    """EfficientNet-Lite0 at 320 px, letterboxed; a feature pyramid of strides 8 (or 4) to 64; one anchor a cell."""
    backbone, head = (FineBackbone, FineHead) if finest_stride == 4 else (LiteBackbone, PyramidHead)
    settings = Settings(preset="pyramid", classes=classes, size=320, squash=False, finest_stride=finest_stride)
    detector = Detector(
        backbone=backbone(pretrained),
        head=head(backbone.channels, len(classes)),
        grid=partial(pyramid_grid, strides=STRIDES_FROM[finest_stride]),
        mean=[127.0] * 3,  # what the Lite0 weights were trained with
        std=[128.0] * 3,
        settings=settings,
    )
    return detector.to(memory_format=torch.channels_last)  # twice as fast on the CPU


def points(classes: tuple[str, ...], pretrained: bool, finest_stride: int = 8) -> Detector:
    """The network of `pyramid`, trained without anchors: one point a cell, see `matching.match_points`."""
    detector = pyramid(classes, pretrained, finest_stride)
    detector.grid_of = partial(point_grid, strides=STRIDES_FROM[finest_stride])
    detector.settings = detector.settings._replace(preset="points")
    return detector


PRESETS = {"article": article, "pyramid": pyramid, "points": points}
WITH_STRIDE_4 = ("pyramid", "points")  # presets whose feature pyramid can have a level at stride 4


def build(
    preset: str = "pyramid",
    classes: tuple[str, ...] = CLASSES,
    pretrained: bool = False,
    finest_stride: int = 8,
) -> Detector:
    """Assemble a detector for the named classes, untrained but for ImageNet's weights in the backbone if `pretrained`.

    finest_stride: of the feature pyramid, 8 or 4, which adds a level for small objects (see fine.py).
    Raises InputError for a preset or a stride that does not exist and for ImageNet weights that cannot be had.
    """
    if preset not in PRESETS:
        raise InputError(f"no preset {preset!r}: choose one of {', '.join(PRESETS)}")
    if finest_stride == 8:
        return PRESETS[preset](tuple(classes), pretrained)
    possible = STRIDES_FROM if preset in WITH_STRIDE_4 else (8,)
    if finest_stride not in possible:
        choices = " or ".join(map(str, possible))
        raise InputError(f"preset {preset!r} has no finest_stride {finest_stride}: choose {choices}")
    return PRESETS[preset](tuple(classes), pretrained, finest_stride)


def save_detector(path: str | Path, detector: Detector, **about) -> None:
    """Write a detector in half precision, with everything that is needed to use it again in the file's metadata.

    about: more metadata, such as metrics.
    """
    metadata = {
        **detector.settings._asdict(),
        "odutils": __version__,
        "torch": torch.__version__,
        "licence": "Apache-2.0",
        **about,
    }
    save_weights(path, detector.state_dict(), metadata, half=True)


def load_detector(path: str | Path) -> Detector:
    """Read a detector that `save_detector` wrote, or the article's own `.pth`; it is in evaluation mode, on the CPU.

    Raises InputError if the file is neither, or if its tensors do not fit its preset and classes.
    """
    tensors, metadata = load_weights(path)
    if not metadata and is_published(tensors):
        return load_article(tensors, str(path))
    if not metadata and {"mean", "std"} <= tensors.keys():
        advice = "it lacks preset, classes and size: write it with odutils.presets.save_detector"
        raise InputError(f"{path}: only the tensors of a detector, without metadata; {advice}")
    settings = Settings.from_metadata(metadata, str(path))
    try:
        detector = build(settings.preset, settings.classes, finest_stride=settings.finest_stride)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    load_tensors(detector, tensors, str(path))
    detector.settings = settings
    if settings.anchors == PUBLISHED:
        use_published_grid(detector)
    return detector.eval()


def load_article(tensors: dict[str, Tensor], name: str) -> Detector:
    """The article's own state dict as a detector that gives the boxes and probabilities of the article's code.

    Raises InputError if the tensors do not fit. See article_weights.py.
    """
    detector = build("article")
    load_tensors(detector, translate(tensors) | {"mean": detector.mean, "std": detector.std}, name)
    use_published_grid(detector)
    return detector.eval()


def use_published_grid(detector: Detector) -> None:
    """Give a detector the article's anchors in the published order; `save_detector` notes it in the metadata."""
    detector.grid_of = published_grid
    detector.settings = detector.settings._replace(anchors=PUBLISHED)


def load_tensors(detector: Detector, tensors: dict[str, Tensor], name: str) -> None:
    """Load tensors into a detector. Raises InputError if they belong to another preset or to other classes."""
    try:
        detector.load_state_dict(tensors)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        preset, classes = detector.settings.preset, len(detector.settings.classes)
        raise InputError(f"{name}: not the weights of a {preset!r} detector of {classes} classes ({reason})") from None
