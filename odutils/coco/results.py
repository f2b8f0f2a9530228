"""Detections as text, and to and from files in COCO's form. Boxes there: [x, y, w, h] in pixels of the image."""

import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from odutils.classes import CATEGORY_IDS, CLASSES
from odutils.coco.reading import hint, load_json
from odutils.coco.rules import BOX, NUMBER, fault_of_box, is_below_a_pixel, is_length, is_usable_id
from odutils.errors import InputError

KEYS = ("image_id", "category_id", "bbox", "score")


def category_ids(classes: Sequence[str]) -> list[int]:
    """The category id of each class: COCO's own if all are classes of COCO, else the labels 1…C."""
    if set(classes) <= set(CLASSES):
        return [CATEGORY_IDS[CLASSES.index(name)] for name in classes]
    return list(range(1, len(classes) + 1))


def to_coco(found: Iterable[tuple], classes: Sequence[str]) -> dict:
    """(file name, shape (H, W, …), Detections) of each image -> a whole COCO file, with scores; ids count from 1.

    A data set can begin with it: what a detector found is then corrected by a person.
    """
    ids = category_ids(classes)
    images, annotations = [], []
    for image_id, (name, (height, width, *_), detections) in enumerate(found, start=1):
        images.append({"id": image_id, "file_name": Path(name).as_posix(), "width": width, "height": height})
        sides = np.concatenate([detections.boxes[:, :2], detections.boxes[:, 2:] - detections.boxes[:, :2]], axis=1)
        for box, label, score in zip(sides.tolist(), detections.labels, detections.scores.tolist(), strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": ids[label - 1]}
            annotations.append(annotation | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0, "score": score})
    categories = [{"id": number, "name": name} for number, name in zip(ids, classes, strict=True)]
    return {"images": images, "annotations": annotations, "categories": categories}


def read_results(path: str | Path, dataset) -> list[dict]:
    """A file of COCO results, or one of `detect --json`, as COCO results for `dataset` (a CocoDetections).

    A file of `detect --json` numbers its images and classes itself: both are found in the data set by their names,
    and what it says of classes that the data set does not have is left out.
    Raises InputError for a file that is something else, naming the first entry at fault.
    """
    content = load_json(Path(path))
    image_of, category_of = {id_: id_ for id_ in dataset.coco.imgs}, {id_: id_ for id_ in dataset.label_of}
    if isinstance(content, dict):
        image_of, category_of = _translations(path, content, dataset)
        content = content["annotations"]
    if not isinstance(content, list):
        raise InputError(f"{path}: holds {reprlib.repr(content)}, not a list of COCO results")
    results = []
    for index, entry in enumerate(content):
        if fault := _fault(entry, image_of, category_of):
            raise InputError(f"{path}: result {index}: {fault}")
        translated = {"image_id": image_of[entry["image_id"]], "category_id": category_of[entry["category_id"]]}
        if translated["category_id"] is not None:
            results.append({"bbox": entry["bbox"], "score": entry["score"], **translated})
    return results


def _fault(entry: Any, image_of: dict, category_of: dict) -> str | None:
    """What is wrong with one result, None if nothing is."""
    if not isinstance(entry, dict):
        return f"is {reprlib.repr(entry)}, not an object"
    if missing := [key for key in KEYS if key not in entry]:
        return f"has no {missing[0]!r}; a COCO result has image_id, category_id, bbox and score"
    for key, known in (("image_id", image_of), ("category_id", category_of)):
        value = entry[key]
        if not is_usable_id(value) or value not in known:
            return f"{key} {reprlib.repr(value)} is not in the data set{hint(value, known)}"
    for key, rule in (("bbox", BOX), ("score", NUMBER)):
        if not rule.holds(entry[key]):
            return f"{key} is {reprlib.repr(entry[key])}, not {rule.words}"
    if min(entry["bbox"][2:]) < 0:
        return f"bbox {entry['bbox']} has a negative width or height; COCO's form is [x, y, w, h]"
    return None


def doubt_about(results: list[dict], dataset) -> str | None:
    """What is probably wrong with the boxes of results, none of which is a fault of its own; None if nothing is."""
    boxes = [result["bbox"] for result in results]
    if boxes and all(map(is_below_a_pixel, boxes)):
        return f"no box is larger than a pixel, such as {boxes[0]}: COCO's are in pixels, not in 0…1"
    as_corners = 0
    for result in results:
        image = dataset.coco.imgs[result["image_id"]]
        if is_length(image.get("width")) and is_length(image.get("height")):
            as_corners += fault_of_box(result["bbox"], image["width"], image["height"]) == "box as corners"
    if as_corners > len(boxes) / 3:
        return f"{as_corners} of {len(boxes)} boxes would fit as x1, y1, x2, y2, but COCO's form is [x, y, w, h]"
    return None


def _translations(path: str | Path, content: dict, dataset) -> tuple[dict, dict]:
    """Image ids and category ids of a `detect --json` -> the data set's; None for a class that it does not have."""
    ids_of_end: dict[str, list] = {}  # "val/a/1.jpg", "a/1.jpg" and "1.jpg" -> the images whose names end so
    for id_, image in dataset.coco.imgs.items():
        for end in _ends(image["file_name"]):
            ids_of_end.setdefault(end, []).append(id_)
    id_of_file = {_ends(image["file_name"])[0]: id_ for id_, image in dataset.coco.imgs.items()}
    id_of_name = {dataset.classes[label - 1]: id_ for id_, label in dataset.label_of.items()}
    image_of, unknown = {}, []
    try:
        for image in content["images"]:
            ends = _ends(image["file_name"])
            found = next((id_of_file[end] for end in ends if end in id_of_file), None)  # the longest that is there
            if found is None and len(alone := ids_of_end.get(ends[0], ())) == 1:
                (found,) = alone  # the data set's name is longer: detected in a sub-folder of its images
            if found is None:
                unknown.append(image["file_name"])
            image_of[image["id"]] = found
        names = {category["id"]: category["name"] for category in content["categories"]}
        category_of = {number: id_of_name.get(name) for number, name in names.items()}
        content["annotations"]
    except (LookupError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path}: neither a list of COCO results nor a file of `detect --json` ({type(error).__name__}: {error})"
        ) from None
    if unknown:
        raise InputError(f"{path}: {len(unknown)} of its images, such as {unknown[0]}, are not in the data set")
    return image_of, category_of


def _ends(file_name: str) -> list[str]:
    """a/b.jpg -> a/b.jpg, b.jpg."""
    parts = PurePath(file_name.replace("\\", "/")).parts
    return ["/".join(parts[start:]) for start in range(len(parts))]


def object_rows(path: Path, detections, classes: Sequence[str], width: int) -> str:
    """A line an object: image (padded to `width`), class, score, and the box's sides in pixels."""
    name, longest = printable(str(path)), max(map(len, classes))
    if not len(detections.boxes):
        return f"{name:<{width}}  nothing found"
    return "\n".join(
        f"{name:<{width}}  {classes[label - 1]:<{longest}}  {score:.2f}  " + " ".join(f"{side:6.0f}" for side in box)
        for box, label, score in zip(detections.boxes, detections.labels, detections.scores, strict=True)
    )


def object_titles(classes: Sequence[str], width: int) -> str:
    """The line above `object_rows`."""
    sides = " ".join(f"{side:>6}" for side in ("left", "top", "right", "bottom"))
    return f"{'image':<{width}}  {'class':<{max(map(len, classes))}}  score {sides}"


def score_table(scores: dict) -> str:
    """The table of `evaluation.score_by_source`; "-" where the data set has no such object."""

    def cell(value: float) -> str:
        return f"{value:8.3f}" if value >= 0 else f"{'-':>8}"

    rows = {"all": scores["all"]} | (scores["by_source"] if len(scores["by_source"]) > 1 else {})
    width = max(map(len, (*rows, *scores["by_class"])))
    lines = [" " * width + "".join(f"{name:>8}" for name in scores["all"])]
    lines += [f"{name:<{width}}" + "".join(map(cell, metrics.values())) for name, metrics in rows.items()]
    if scores["by_class"]:
        lines += ["", f"{'class':<{width}}{'AP50':>8}"]
        best_first = sorted(scores["by_class"].items(), key=lambda item: (-item[1], item[0]))
        lines += [f"{name:<{width}}{cell(value)}" for name, value in best_first]
    return "\n".join(lines)


def printable(text: str) -> str:
    """Line breaks, control characters and broken Unicode as escapes, so that a name cannot disturb the table."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
