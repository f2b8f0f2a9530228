"""Which images belong together, and which part of a data set gets which group of them."""

import random
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from odutils.errors import InputError

# Roboflow adds ".rf." and a hash to each augmented copy of an image, and "_jpg" in place of the old suffix.
ROBOFLOW = re.compile(r"(_(?:jpe?g|png|webp|bmp))?\.rf\.\w+$", re.IGNORECASE)
LAST_NUMBER = re.compile(r"[\W_]*\d+\D*$")
# How much these shares count beside the share of objects; of rare classes none can come close.
IMAGES_WEIGH, CLASSES_WEIGH = 0.25, 0.1
MISSING_WEIGHS = 0.3  # if each part lacked every class; squares of how far the shares are away are added to that
ATTEMPTS = 4000  # exchanges that are tried after the first assignment


def group_of(image: dict, index: int, by: str, file: Path) -> str:
    """What an image has in common with those that belong to it.

    by: "name" (the file's name, with its folder, up to its last number: paper_07.jpg -> paper), "folder", "image"
    (nothing: each by itself), or a key of the image's entry.   Raises InputError if the entry has no such key.
    """
    path = PurePosixPath(image["file_name"].replace("\\", "/"))
    if by == "name":
        stem = ROBOFLOW.sub("", path.stem)
        return str(path.parent / (LAST_NUMBER.sub("", stem) if re.search(r"\d", stem) else stem))
    if by == "folder":
        return str(path.parent)
    if by == "image":
        return str(image["id"])
    if not isinstance(value := image.get(by), str | int | float):
        keys = ", ".join(sorted(image))
        raise InputError(f"{file}: images[{index}] has no text and no number {by!r}; its keys are {keys}")
    return str(value)


def assign(counts: np.ndarray, shares: Sequence[float], seed: int = 0) -> np.ndarray:
    """Give each group to a part, so that the parts' shares come close to `shares`, and no class is missing if possible.

    The largest groups choose first, each the part that is furthest behind; then exchanges that bring the shares closer
    are looked for at random.
    counts: (G, 2 + C) objects, images and objects of each class of each group, G ≥ P.   shares: of P parts.
    Returns (G,) indices of parts; each part has one group at least.
    """
    rng = random.Random(seed)
    wanted = np.array(shares)[:, None]  # (P, 1)
    amounts = counts / counts.sum(axis=0).clip(min=1)  # (G, 2 + C), shares of the whole
    weights = np.full(counts.shape[1], CLASSES_WEIGH / max(1, counts.shape[1] - 2))
    weights[:2] = 1, IMAGES_WEIGH
    has_some = counts.sum(axis=0) > 0  # (2 + C,)
    possible = (counts > 0).sum(axis=0) >= len(shares)  # (2 + C,), could be in every part
    each_missing = MISSING_WEIGHS / max(1, len(shares) * possible[2:].sum())

    def cost(have: np.ndarray) -> float:
        """How far the parts (P, 2 + C) are from what is wanted."""
        missing = (have[:, possible] <= 1e-12).sum() * each_missing
        return float((weights * has_some * (have - wanted) ** 2).sum() + missing + (have[:, 1] <= 1e-12).sum())

    order = list(range(len(counts)))
    rng.shuffle(order)
    order.sort(key=lambda group: -counts[group, 0])
    part_of = np.zeros(len(counts), int)
    have = np.zeros((len(shares), counts.shape[1]))
    for turn, group in enumerate(order):
        behind = (weights * amounts[group] * (2 * (have - wanted) + amounts[group])).sum(axis=1)  # (P,) change of cost
        empty = have[:, 1] == 0
        if empty.sum() >= len(order) - turn:  # the last groups fill the parts that have none
            behind[~empty] = np.inf
        part_of[group] = behind.argmin()
        have[part_of[group]] += amounts[group]
    best = cost(have)
    for _ in range(ATTEMPTS):
        one, other = rng.randrange(len(counts)), rng.randrange(len(counts))
        before = part_of[[one, other]].copy()
        move = [rng.randrange(len(shares)), before[1]]
        after = before[::-1] if rng.random() < 0.5 else move
        changed = have.copy()
        for group, part, to in zip((one, other), before, after, strict=True):
            changed[part] -= amounts[group]
            changed[to] += amounts[group]
        if one != other and (now := cost(changed)) < best - 1e-12:
            best, have = now, changed
            part_of[[one, other]] = after
    return part_of
