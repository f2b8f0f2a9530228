"""Divide a data set into parts, such as train, val and test, without dividing what belongs together.

Frames of one video, or photographs of one scene, are almost the same image: with one of them in the training set and
another in the validation set, a detector that has memorised the first does well on the second. So whole groups of
images go to one part.
"""

import json
import os
import posixpath
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from odutils.coco.grouping import assign, group_of
from odutils.coco.reading import annotation_file, image_path, read_faultless
from odutils.errors import InputError, plural
from odutils.files import whole_folder
from odutils.progress import MANY, bar


class Part(NamedTuple):
    """What a part got."""

    name: str
    groups: int
    images: int
    objects: dict[str, int]  # by class, those of the whole data set


def split_dataset(
    root: str | Path, split: str, out: str | Path, shares: dict[str, float], by: str = "name", seed: int = 0
) -> list[Part]:
    """Write the images and annotations of root's `split` as the parts of a new data set `out`; returns what each got.

    shares: part -> its share of the objects; they add up to 1.   by: which images belong together, see `group_of`.
    seed: the same seed gives the same assignment.   Images are linked where the disk allows it (editing one in place
    changes the original, too), else copied. `out` must be missing or empty, and appears when it is whole. Everything
    else in the file is kept.   Raises InputError for shares, keys or a data set that cannot be used, fewer groups than
    parts, and a place that cannot be written to.
    """
    check_shares(shares)
    root, out = Path(root), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: is not empty: choose another folder")
    file = annotation_file(root, split)
    content = read_faultless(file)
    seen: set[str] = set()
    for image in content["images"]:
        name = posixpath.normpath(image["file_name"].replace("\\", "/"))
        if name in seen:
            raise InputError(f"{file}: two images are called {name!r}: they could come into two parts")
        seen.add(name)
    names = {category["id"]: str(category["name"]) for category in content["categories"]}
    columns = {category_id: column for column, category_id in enumerate(names, start=2)}
    groups = [group_of(image, index, by, file) for index, image in enumerate(content["images"])]
    number_of = {group: number for number, group in enumerate(sorted(set(groups)))}
    if len(number_of) < len(shares):
        advice = "choose another --by, such as image (each by itself) or folder"
        raise InputError(f"{file}: {plural(len(number_of), 'group')} by {by!r} for {len(shares)} parts: {advice}")
    group_of_image = {image["id"]: number_of[g] for image, g in zip(content["images"], groups, strict=True)}
    counts = np.zeros((len(number_of), 2 + len(names)))  # (groups, objects and images and each class)
    for number in group_of_image.values():
        counts[number, 1] += 1
    for annotation in content["annotations"]:
        counts[group_of_image[annotation["image_id"]], [0, columns[annotation["category_id"]]]] += 1
    part_of_group = assign(counts, list(shares.values()), seed)  # (groups,)
    write_parts(root / split, out, content, list(shares), {i: part_of_group[g] for i, g in group_of_image.items()})
    parts = []
    for index, name in enumerate(shares):
        _, images, *objects = counts[part_of_group == index].sum(axis=0).astype(int).tolist()
        by_class = dict(zip(names.values(), objects, strict=True))
        parts.append(Part(name, int((part_of_group == index).sum()), images, by_class))
    return parts


def check_shares(shares: dict[str, float]) -> None:
    """Raises InputError unless there are two parts or more with usable names and shares that add up to 1."""
    for name, share in shares.items():
        if not re.fullmatch(r"\w[\w.-]*", name) or name == "annotations":
            raise InputError(f"part {name!r}: must be the name of a folder, of letters and digits")
        if not 0 < share < 1:
            raise InputError(f"part {name}={share:g}: its share must be between 0 and 1")
    if len(shares) < 2 or abs(sum(shares.values()) - 1) > 1e-3:
        shown = ", ".join(f"{name}={share:g}" for name, share in shares.items())
        raise InputError(f"parts {shown}: name two or more, whose shares add up to 1, not {sum(shares.values()):g}")


def write_parts(folder: Path, out: Path, content: dict, parts: list[str], part_of: dict) -> None:
    """Write the parts into `out`, which appears when it is whole.   part_of: image id -> index of its part."""
    out = out.resolve()  # a link is followed, not replaced
    with whole_folder(out) as temporary:
        (temporary / "annotations").mkdir(parents=True)
        for image in bar(content["images"], unit="images", show=len(content["images"]) >= MANY):
            name = PurePosixPath(image["file_name"].replace("\\", "/"))
            if name.is_absolute() or ".." in name.parts:
                raise InputError(f"{folder}: the image {image['file_name']!r} lies outside")
            link_or_copy(image_path(folder, image["file_name"]), temporary / parts[part_of[image["id"]]] / name)
        for index, part in enumerate(parts):
            of_part = {"images": [one for one in content["images"] if part_of[one["id"]] == index]}
            of_part["annotations"] = [one for one in content["annotations"] if part_of[one["image_id"]] == index]
            text = json.dumps(content | of_part)
            (temporary / "annotations" / f"instances_{part}.json").write_text(text)
        if out.exists():
            out.rmdir()  # empty, as was seen before


def link_or_copy(source: Path, target: Path) -> None:
    """One more name for the same file, or a copy where the disk has no such links."""
    if not source.is_file():
        raise InputError(f"{source}: no such image")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(os.path.realpath(source), target)
    except OSError:
        shutil.copyfile(source, target)
