"""What is wrong with a data set in COCO's layout: everything at once, so that it can be put right at once.

    print(to_text(check_dataset("my_data", "train")))

Nothing that a file can hold makes it fail: whatever cannot be understood is itself a problem of the table.
"""

import math
import os
import warnings
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from odutils.ahead import map_ahead
from odutils.coco.reading import image_path, read_json
from odutils.coco.results import printable
from odutils.coco.rules import HINTS, RULES, fault_of_box, fault_of_part, faults_of_entry, faults_of_sources
from odutils.errors import InputError
from odutils.images import upright_size
from odutils.progress import MANY, bar


class Problem(NamedTuple):
    """One fault. `file` is relative to the data set's root; ids are None where there are none that are numbers."""

    kind: str  # "missing image", "box outside", … : the same words for the same fault
    file: str
    image_id: int | None
    annotation_id: int | None
    message: str


def check_dataset(root: str | Path, split: str) -> list[Problem]:
    """Every problem of root/annotations/instances_{split}.json and the images in root/{split}/; [] if there is none.

    Kinds: missing folder, missing file, invalid JSON, missing key, wrong type, no images, no categories, no objects,
    duplicate category id, duplicate category name, duplicate image id, image listed twice, missing image, broken
    image, wrong size, duplicate annotation id, unknown image, unknown category, unlabelled class, box without area,
    box below a pixel, box as corners, box outside, box partly outside, duplicate box.
    Stricter than training: duplicate annotation ids, for example, are put right there. What has no problem, trains.
    Every image is decoded, by a few threads. Never raises for what the files hold.
    """
    check = _Check(Path(root), split)
    content = check.read()
    if content is not None:
        check.categories(content)
        check.images(content)
        check.annotations(content)
    return check.problems


class _Check:
    def __init__(self, root: Path, split: str):
        self.root, self.split, self.json_name = root, split, f"annotations/instances_{split}.json"
        self.problems: list[Problem] = []
        self.category_names: dict[int, str] = {}
        self.image_of: dict[int, dict] = {}  # the valid keys of each image, by its id
        self.labelled: dict[str, list] = {}  # class names, by source

    def report(self, kind: str, message: str, file: str | None = None, image_id=None, annotation_id=None) -> None:
        self.problems.append(Problem(kind, file or self.json_name, image_id, annotation_id, message))

    def read(self) -> dict | None:
        """The content of the annotation file, None if there is nothing to go on with."""
        for name in (".", "annotations", self.split):
            if not (self.root / name).is_dir():
                self.report("missing folder", f"{self.root / name}: no such folder", name)
        path = self.root / self.json_name
        if not path.is_file():
            if path.parent.is_dir():
                self.report("missing file", f"{path}: no such file")
            return None
        try:
            return read_json(path)
        except InputError as error:
            return self.report("invalid JSON", str(error))

    def entries(self, content: dict, part: str) -> list[tuple[str, dict]]:
        """(where, the keys that are valid) of each entry of a part; what is missing or ill-typed is reported."""
        if fault := fault_of_part(content, part):
            self.report(*fault)
        found = []
        for index, entry in enumerate(content[part] if isinstance(content.get(part), list) else []):
            where = f"{part}[{index}]"
            faults = faults_of_entry(where, part, entry)
            valid = {key: entry[key] for key in RULES[part] if key not in faults and entry.get(key) is not None}
            found.append((where, valid))
            for kind, message in dict.fromkeys(faults.values()):  # once for an entry that is no object
                self.report(kind, message, *self.about(part, valid))
        return found

    def about(self, part: str, entry: dict) -> tuple[str | None, int | None, int | None]:
        """File, image id and annotation id for the problems of an entry, as far as they are known."""
        image = self.image_of.get(entry.get("image_id"), {}) if part == "annotations" else entry
        file = f"{self.split}/{image['file_name']}" if "file_name" in image else None
        ids = {"images": (entry.get("id"), None), "annotations": (entry.get("image_id"), entry.get("id"))}
        return file, *ids.get(part, (None, None))

    def categories(self, content: dict) -> None:
        first: dict[str, str] = {}
        for where, category in self.entries(content, "categories"):
            number, name = category.get("id"), category.get("name")
            if number in self.category_names:
                self.report("duplicate category id", f"{where}: id {number} is {self.category_names[number]!r} already")
            elif number is not None:
                self.category_names[number] = name
            if name is not None and first.setdefault(name, where) != where:
                self.report("duplicate category name", f"{where}: {name!r} is {first[name]} already")
        for fault in faults_of_sources(content, set(self.category_names.values())):
            self.report(*fault)
        if not faults_of_sources(content):
            self.labelled = content.get("labelled_classes_by_source") or {}

    def images(self, content: dict) -> None:
        first: dict[PurePosixPath, str] = {}
        for where, image in (images := self.entries(content, "images")):
            number, name, about = image.get("id"), image.get("file_name"), self.about("images", image)
            if number in self.image_of:
                self.report("duplicate image id", f"{where}: another image has id {number} already", *about)
            elif number is not None:
                self.image_of[number] = image
            if name and (other := first.setdefault(PurePosixPath(name.replace("\\", "/")), where)) != where:
                self.report("image listed twice", f"{where}: this image is {other} already", *about)
        if (self.root / self.split).is_dir():
            self.files([image for _, image in images if "file_name" in image])

    def files(self, images: list[dict]) -> None:
        """Decode every image; compare its size with the file's."""
        paths = [image_path(self.root / self.split, image["file_name"]) for image in images]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of harmless oddities, such as a corrupt EXIF entry
            looks = bar(map_ahead(look_at, paths), total=len(paths), unit="images", show=len(paths) >= MANY)
            for image, (kind, size) in zip(images, looks, strict=True):
                about = self.about("images", image)
                if kind:
                    self.report(kind, size, *about)
                    continue
                width, height = (image.get(key, actual) for key, actual in zip(("width", "height"), size, strict=True))
                if (width, height) != size:
                    turned = ": its EXIF entry turns it" if (height, width) == size else ""
                    message = f"the image has {size[0]} × {size[1]} pixels upright, the file says {width} × {height}"
                    self.report("wrong size", message + turned, *about)
                image["width"], image["height"] = size  # boxes are compared with what is really there

    def annotations(self, content: dict) -> None:
        ids: dict[int, str] = {}
        boxes: dict[tuple, str] = {}
        objects = 0
        for where, annotation in self.entries(content, "annotations"):
            number, image_id, category = (annotation.get(key) for key in ("id", "image_id", "category_id"))
            about = self.about("annotations", annotation)
            if number is not None and ids.setdefault(number, where) != where:
                self.report("duplicate annotation id", f"{where}: {ids[number]} has id {number} already", *about)
            if image_id is not None and image_id not in self.image_of:
                self.report("unknown image", f"{where}: no image has id {image_id}", *about)
            if category is not None and category not in self.category_names:
                self.report("unknown category", f"{where}: no category has id {category}", *about)
            source, name = self.image_of.get(image_id, {}).get("source"), self.category_names.get(category)
            if name and name not in self.labelled.get(source, [name]):
                message = f"{where}: the image's source {source!r} does not label {name!r}"
                self.report("unlabelled class", message, *about)
            if "bbox" in annotation:
                self.box(where, annotation, about)
                key = (image_id, category, *annotation["bbox"])
                if None not in key and boxes.setdefault(key, where) != where:
                    self.report("duplicate box", f"{where}: the same box and category as {boxes[key]}", *about)
                objects += not any(annotation.get(key) for key in ("iscrowd", "difficult", "ignore"))
        if not objects and isinstance(content.get("annotations"), list):
            self.report("no objects", "the file has no box to learn from")

    def box(self, where: str, annotation: dict, about: tuple) -> None:
        """Compare a box with its image, as far as its size is known."""
        image = self.image_of.get(annotation.get("image_id"), {})
        right, bottom = image.get("width", math.inf), image.get("height", math.inf)
        if kind := fault_of_box(annotation["bbox"], right, bottom):
            shown = ", ".join(f"{value:g}" for value in annotation["bbox"])
            size = f"{right:g} × {bottom:g} pixels{HINTS.get(kind, '')}"
            self.report(kind, f"{where}: [{shown}] (x, y, w, h) in an image of {size}", *about)


def look_at(path: Path) -> tuple[str, Any]:
    """Decode an image. Returns ("", (width, height) upright in pixels) or (kind of problem, reason)."""
    if not os.path.isfile(path):
        return "missing image", "no such file"
    try:
        return "", upright_size(path)
    except Exception as error:  # rubbish makes decoders raise almost anything
        return "broken image", f"{type(error).__name__}: {error}" if os.path.getsize(path) else "the file is empty"


def to_text(problems: list[Problem]) -> str:
    """The table as aligned text, a line a problem below a line of titles; "no problems" if there are none."""
    if not problems:
        return "no problems"
    rows = [("problem", "file", "image", "annotation", "what is wrong")]
    rows += [tuple("-" if cell is None else printable(str(cell)) for cell in problem) for problem in problems]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[-1]]) for row in rows)
