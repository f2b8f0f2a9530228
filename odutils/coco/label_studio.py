"""Label Studio's JSON: labels out of its export, and detections into it as predictions that a person corrects.

A region there has x, y (its upper left corner), width and height as percentages of the image's sides, and a rotation in
degrees, clockwise around that corner. A task refers to its image by a text, such as `/data/local-files/?d=cats/1.jpg`.
"""

import math
import reprlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

from odutils.coco.class_names import classes_of, read_classes
from odutils.coco.labels import ImageFolder, LabelledObject, Labels, inside, read_all
from odutils.coco.reading import load_json
from odutils.coco.rules import is_name, is_number
from odutils.errors import InputError, plural

LOCAL = "/data/local-files/?d="  # files in folders below LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT
TAG, IMAGE = "label", "image"  # names in Label Studio's own template for boxes: <RectangleLabels name=… toName=…>
ANSWERS = {"choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea"}
PREFIX = 9  # characters, a random number and a hyphen, that Label Studio puts before the name of an uploaded image


def to_label_studio(found: Iterable[tuple], classes: Sequence[str], model_version: str, folder: str = "") -> list[dict]:
    """(file name, shape (H, W, …), Detections) of each image -> tasks with predictions, as Label Studio imports them.

    folder: name of the folder that holds the images; Label Studio serves files from folders below its document root,
    not from the root itself.   A task's score is the mean of its boxes' (Label Studio sorts by it), 0 without boxes.
    """
    tasks = []
    for name, (height, width, *_), detections in found:
        result = []
        of_image = zip(detections.boxes.tolist(), detections.labels, detections.scores.tolist(), strict=True)
        for number, ((left, top, right, bottom), label, score) in enumerate(of_image, start=1):
            value = {"x": 100 * left / width, "y": 100 * top / height, "rotation": 0}
            value |= {"width": 100 * (right - left) / width, "height": 100 * (bottom - top) / height}
            value["rectanglelabels"] = [classes[label - 1]]
            region = {"id": str(number), "type": "rectanglelabels", "from_name": TAG, "to_name": IMAGE}
            region |= {"original_width": width, "original_height": height, "image_rotation": 0}
            result.append(region | {"value": value, "score": score})
        mean = sum(region["score"] for region in result) / max(1, len(result))
        prediction = {"model_version": model_version, "score": mean, "result": result}
        tasks.append(
            {"data": {IMAGE: LOCAL + quote(f"{folder}/{name}" if folder else str(name))}, "predictions": [prediction]}
        )
    return tasks


def read_label_studio(source: Path, images: ImageFolder, classes_file: Path | None = None) -> Labels:
    """Read a JSON export. Of several annotations of a task, the one that was changed last counts.

    Images that nobody has finished are left out: those without a task, without an annotation, or with cancelled ones
    alone, or with regions of which none is a box. An annotation without regions makes an image without objects. A
    rotated box becomes the upright box around it.
    classes_file: the names of the classes in order; default: those of the labels, in alphabetical order.
    Raises InputError for the first fault, with file and task, and how many more there are.
    """
    wanted = read_classes(classes_file) if classes_file else None
    tasks = None if source.is_dir() else load_json(source)
    if not isinstance(tasks, list):
        raise InputError(f"{source}: not a JSON export of Label Studio, which is one file with a list of tasks")
    objects: dict[str, list[LabelledObject]] = {}
    counts = dict.fromkeys(("several", "rotated", "other"), 0)
    no_boxes: set[str] = set()  # images with regions of other kinds only

    def read(numbered: tuple[int, Any]) -> None:
        index, task = numbered
        where = f"{source}: task {task.get('id', index + 1) if isinstance(task, dict) else index + 1}"
        annotations = finished(task, where)
        if not annotations:
            return
        name = image_of(task, where, images)
        if name in objects or name in no_boxes:
            raise InputError(f"{where}: another task is about {name}, too")
        counts["several"] += len(annotations) > 1
        last = max(reversed(annotations), key=lambda one: str(one.get("updated_at") or ""))  # of equals the last
        other_before = counts["other"]
        boxes = read_regions(last.get("result"), where, images.sizes[name], counts)
        if boxes or counts["other"] == other_before:
            objects[name] = boxes
        else:
            no_boxes.add(name)

    read_all(list(enumerate(tasks)), read)
    notes = []
    if counts["several"]:
        notes.append(f"{plural(counts['several'], 'image')} with several annotations: the last one of each was taken")
    if counts["rotated"]:
        notes.append(f"rotated boxes: {counts['rotated']} became the upright boxes around them")
    if counts["other"]:
        notes.append(f"left out: {plural(counts['other'], 'region')} of another kind than boxes")
    if no_boxes:
        notes.append(f"left out: {plural(len(no_boxes), 'image')} with regions of which none is a box")
    if unfinished := len(images.paths) - len(objects) - len(no_boxes):
        notes.append(f"left out: {plural(unfinished, 'image')} without a finished annotation")
    if empty := sum(not of_image for of_image in objects.values()):
        notes.append(f"annotated without a box: {plural(empty, 'image')}, taken as images without objects")
    if not objects:
        raise InputError(f"{source}: no task in it has a finished annotation{' of boxes' if no_boxes else ''}")
    return Labels(classes_of(objects.values(), wanted, source), objects, notes)


def finished(task: Any, where: str) -> list[dict]:
    """The annotations of a task but for those that were cancelled, which is what "skip" does."""
    annotations = task.get("annotations") if isinstance(task, dict) else None
    if not isinstance(annotations, list) or not all(isinstance(one, dict) for one in annotations):
        raise InputError(f"{where} has no list of annotations: export as JSON, not as JSON-MIN")
    return [one for one in annotations if not one.get("was_cancelled")]


def image_of(task: dict, where: str, images: ImageFolder) -> str:
    """The image of a task: what its longest ending calls so in the folder. Raises InputError if there is none."""
    data = task.get("data")
    texts = [text for text in data.values() if isinstance(text, str)] if isinstance(data, dict) else []
    for text in texts:
        try:
            address = urlsplit(text.replace("\\", "/"))
        except ValueError:  # some other text, such as "http://[not a host"
            continue
        path = parse_qs(address.query).get("d", [unquote(address.path)])[0].strip("/")
        parts = path.split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        if parts[0] == images.folder.resolve().name:  # as `to_label_studio` writes it
            ends = ends[1:] + ends[:1]
        for name in (*ends, parts[-1][PREFIX:] if parts[-1][PREFIX - 1 : PREFIX] == "-" else parts[-1]):
            if name in images.paths:
                return name
    shown = reprlib.repr(texts[0]) if texts else "its data"
    raise InputError(f"{where}: no image in {images.folder} matches {shown}")


def read_regions(result: Any, where: str, size: tuple[int, int], counts: dict[str, int]) -> list[LabelledObject]:
    """The boxes of an annotation.   size: (width, height) in pixels.   counts: adds up what was left out or changed.

    <RectangleLabels> makes one result of type "rectanglelabels" for a box; <Rectangle> with <Labels> makes two of the
    same id, of types "rectangle" and "labels". Answers about the whole image, such as choices, are no regions.
    """
    if not isinstance(result, list) or not all(isinstance(region, dict) for region in result):
        raise InputError(f"{where}: its annotation has no list of results")
    regions = [region for region in result if region.get("type") not in ANSWERS]
    shapes = {str(region.get("id")) for region in regions if region.get("type") != "labels"}
    names_of = {str(one.get("id")): value_of(one).get("labels") for one in regions if one.get("type") == "labels"}
    found = []
    for index, region in enumerate(result):
        place, kind, region_id = f"{where}, region {index + 1}", region.get("type"), str(region.get("id"))
        if kind in ANSWERS or (kind == "labels" and region_id in shapes):
            continue
        if kind not in ("rectanglelabels", "rectangle"):
            counts["other"] += 1
            continue
        value = value_of(region)
        sides = [value.get(key) for key in ("x", "y", "width", "height")]
        turn = value.get("rotation") or 0
        names = value.get("rectanglelabels") if kind == "rectanglelabels" else names_of.get(region_id)
        if not all(map(is_number, [*sides, turn])):
            raise InputError(f"{place}: x, y, width, height and rotation are not all numbers")
        if region.get("image_rotation"):
            raise InputError(f"{place}: the image was turned while it was labelled: turn it back, and label it again")
        if not isinstance(names, list) or not names or not all(map(is_name, names)):
            raise InputError(f"{place}: it has no label")
        box = inside(upright(*sides, turn, size), size, place)
        counts["rotated"] += bool(turn % 360)
        found += [LabelledObject(name.strip(), box) for name in names]
    return found


def value_of(region: dict) -> dict:
    return region["value"] if isinstance(region.get("value"), dict) else {}


def upright(x: float, y: float, width: float, height: float, turn: float, size: tuple[int, int]) -> tuple:
    """The box xyxy in pixels around a region.   x, y, width, height: in %.   turn: in degrees, around (x, y)."""
    left, top = x / 100 * size[0], y / 100 * size[1]
    width, height = width / 100 * size[0], height / 100 * size[1]
    if not turn % 360:
        return left, top, left + width, top + height
    sine, cosine = math.sin(math.radians(turn)), math.cos(math.radians(turn))
    corners = [(0, 0), (width, 0), (0, height), (width, height)]
    xs, ys = [a * cosine - b * sine for a, b in corners], [a * sine + b * cosine for a, b in corners]
    return left + min(xs), top + min(ys), left + max(xs), top + max(ys)
