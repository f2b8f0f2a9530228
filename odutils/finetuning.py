"""The detector that a training begins with: random, with ImageNet's backbone, or fine-tuned from a weights file.

Only the class output, the last layer of the class branch, depends on which classes there are: it has one row for each
class (in the preset `article` one for each of a cell's 45 anchors and each class). Fine-tuning on other classes takes
over all other layers whole, and of the class output the rows of those classes that both detectors have.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from odutils.article_weights import is_published
from odutils.errors import InputError
from odutils.fine import FINE_NORM, belongs_to_fine
from odutils.model import Detector
from odutils.presets import PUBLISHED, build, load_article, load_tensors, use_published_grid
from odutils.recipe import Recipe
from odutils.settings import Settings
from odutils.weights import load_weights

CLASS_OUTPUT = "head.class_output"  # how the names of its tensors begin, in all presets
SHOWN = 5  # class names in a line
LEVEL_TOLD = {  # finest strides before and now -> what became of the level at stride 4
    (8, 4): "; the level at stride 4 is new",
    (4, 8): "; its level at stride 4 is left out: --finest-stride 4 keeps it",
}


def make_detector(recipe: Recipe, classes: tuple[str, ...], weights: str | Path | None = None) -> tuple[Detector, str]:
    """The recipe's detector as training begins with it, and what it took over from `weights` as a sentence, or "".

    Raises InputError if the preset does not exist, or the weights cannot be read or belong to another preset.
    """
    torch.manual_seed(recipe.seed)
    pretrained = recipe.pretrained and not weights
    detector = build(recipe.preset, classes, pretrained, recipe.finest_stride)
    detector.settings = detector.settings._replace(size=recipe.size)
    return detector, take_over(detector, weights) if weights else ""


def take_over(detector: Detector, weights: str | Path) -> str:
    """Load a weights file into a freshly built detector; classes are found by name, wherever they stand in the list.

    The rows of classes that the file lacks stay as they were initialised. Published weights bring their anchors along,
    in their own order (see article_weights.py): their rows belong to these.
    Returns a sentence on what was taken over.
    Raises InputError if the file is no detector of this project, or one of another preset.
    """
    tensors, before = read(weights)
    preset, classes = detector.settings.preset, detector.settings.classes
    if before.preset != preset and "article" in (before.preset, preset):  # the others share one network
        raise InputError(f"{weights}: weights of the preset {before.preset!r} cannot begin a training of {preset!r}")
    for name, fresh in detector.state_dict().items():
        if name.startswith(CLASS_OUTPUT) and name in tensors:
            expected = (len(fresh) // len(classes) * len(before.classes), *fresh.shape[1:])
            if tensors[name].shape != expected:
                shape = tuple(tensors[name].shape)
                raise InputError(f"{weights}: {name} has the shape {shape}: not {len(before.classes)} classes")
            tensors[name] = rows_by_name(tensors[name], before.classes, fresh, classes)
    if before.finest_stride != detector.settings.finest_stride:
        tensors = of_these_levels(tensors, detector.state_dict())
    load_tensors(detector, tensors, str(weights))
    if before.anchors == PUBLISHED:
        use_published_grid(detector)
    level = LEVEL_TOLD.get((before.finest_stride, detector.settings.finest_stride), "")
    return describe(weights, before.classes, classes) + level


def read(weights: str | Path) -> tuple[dict[str, Tensor], Settings]:
    """The tensors and the settings of a weights file, of this project or the article's own `.pth`."""
    tensors, metadata = load_weights(weights)
    if not metadata and is_published(tensors):
        published = load_article(tensors, str(weights))
        return published.state_dict(), published.settings
    return tensors, Settings.from_metadata(metadata, str(weights))


def fingerprint(weights: str | Path | None) -> str | None:
    """What tells a weights file from others by its content, None without one: a checkpoint remembers it."""
    return hashlib.sha256(Path(weights).read_bytes()).hexdigest()[:12] if weights else None


def rows_by_name(saved: Tensor, saved_classes: Sequence[str], fresh: Tensor, classes: Sequence[str]) -> Tensor:
    """`fresh` with the rows of `saved` wherever a class has the same name.

    saved: (anchors × saved classes, …).   fresh: (anchors × classes, …), not changed.   Row = anchor × classes + class.
    """
    shared = [name for name in classes if name in saved_classes]
    new_rows = [classes.index(name) for name in shared]
    saved_rows = [saved_classes.index(name) for name in shared]
    mixed = fresh.clone().unflatten(0, (-1, len(classes)))  # (anchors, classes, …)
    mixed[:, new_rows] = saved.unflatten(0, (-1, len(saved_classes)))[:, saved_rows]
    return mixed.flatten(0, 1)


def of_these_levels(saved: dict[str, Tensor], fresh: dict[str, Tensor]) -> dict[str, Tensor]:
    """The saved tensors without those of the level at stride 4, or with that level added to them.

    An added level begins as in a new detector, but for its norms in the towers: they begin as those of stride 8, the
    level beside it, because they stand between convolutions that come from the file.
    """
    kept = {name: tensor for name, tensor in saved.items() if not belongs_to_fine(name)}
    for name, tensor in fresh.items():
        if belongs_to_fine(name):
            beside = name.replace(FINE_NORM, ".norms.0.")
            kept[name] = kept.get(beside, tensor)
    return kept


def describe(weights: str | Path, before: Sequence[str], classes: Sequence[str]) -> str:
    """What `take_over` did, for people."""
    shared, new = [c for c in classes if c in before], [c for c in classes if c not in before]
    if not new:
        rows = f"all classes taken over by name ({len(shared)})"
    else:
        rows = f"{listed(shared) or 'none'} taken over by name, {len(new)} new: {listed(new)}"
    return f"weights of {weights}: all layers but the class output taken over; class output: {rows}"


def listed(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
