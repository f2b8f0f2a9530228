"""COCO files in: read whatever the machine's locale, judged by `rules`, and made ready for pycocotools."""

import contextlib
import gc
import io
import json
import os
import reprlib
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from odutils.coco.rules import (
    RULES,
    fault_of_part,
    faults_of_entry,
    faults_of_sources,
    is_anything,
    is_below_a_pixel,
    is_id,
)
from odutils.errors import InputError


def load_json(path: Path) -> Any:
    """What a JSON file holds: UTF-8 (or 16, or 32) with or without byte-order mark, whatever the machine's locale.

    Raises InputError, with line and column where they are known, if it is none.
    """
    collecting = gc.isenabled()
    gc.disable()  # it would look for garbage among a million new dicts again and again: a third of the time
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not {error.encoding} at byte {error.start}: save the file as UTF-8") from None
    except (OSError, ValueError, RecursionError) as error:  # no permission, numbers or nesting without end
        raise InputError(f"{path}: cannot be read as JSON ({type(error).__name__}: {error})") from None
    finally:
        if collecting:
            gc.enable()


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises InputError if it holds none."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {reprlib.repr(content)}, not an object")
    return content


def annotation_file(root: str | Path, split: str) -> Path:
    """root/annotations/instances_{split}.json. Raises InputError if it or the folder of images is not there."""
    file, images = Path(root) / "annotations" / f"instances_{split}.json", Path(root) / split
    if not file.is_file():
        raise InputError(f"{file}: no such file; a data set has annotations/instances_SPLIT.json and images in SPLIT/")
    if not images.is_dir():
        raise InputError(f"{images}: no such folder; the images of split {split!r} belong there")
    return file


def image_path(folder: Path, file_name: str) -> Path:
    """Where an image lies. Files written on Windows may separate folders by backslashes."""
    path = folder / file_name
    if "\\" in file_name and not os.path.isfile(path):
        return folder / file_name.replace("\\", "/")
    return path


def read_faultless(path: Path) -> dict:
    """A COCO file's content. Raises InputError with the first fault that would make training or evaluation wrong."""
    content = read_json(path)
    if fault := first_fault(content):
        raise InputError(f"{path}: {fault}; `python -m odutils check` lists all faults")
    return content


def read_dataset(path: Path):
    """A COCO file as pycocotools' COCO, with class names as text, and `area`, `iscrowd` and `difficult` everywhere.

    `difficult` is 1 for what counts neither way: objects so marked, marked "ignore" (a key that pycocotools
    overwrites), or without area. Where annotations share an id or have none, all are numbered anew: pycocotools'
    index would lose some.
    Raises InputError with the first fault that would make training or evaluation wrong.
    """
    from pycocotools.coco import COCO

    content = read_faultless(path)
    for category in content["categories"]:
        category["name"] = str(category["name"])
    annotations = content["annotations"]
    ids = {annotation["id"] for annotation in annotations if is_id(annotation.get("id"))}
    if len(ids) < len(annotations):
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number
    for annotation in annotations:
        _, _, width, height = annotation["bbox"]
        marked = annotation.get("difficult") or annotation.get("ignore")
        annotation["difficult"] = int(bool(marked) or width == 0 or height == 0)
        annotation["iscrowd"] = int(annotation.get("iscrowd") or 0)
        if annotation.get("area") is None:
            annotation["area"] = width * height
    coco = COCO()
    coco.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools reports what it does
        coco.createIndex()
    return coco


def ids_by_source(images: Iterable[dict]) -> dict[str, list]:
    """Ids of images by their `source`: those without one as "without a source", or as "all" where none has one."""
    ids: dict[str, list] = {}
    for image in images:
        ids.setdefault(image.get("source") or "without a source", []).append(image["id"])
    return {"all": ids["without a source"]} if set(ids) == {"without a source"} else ids


def first_fault(content: dict) -> str | None:
    """The first fault that would make training or evaluation wrong, None if there is none."""
    for part in RULES:
        if fault := fault_of_part(content, part):
            return fault[1]
        if fault := _first_in_entries(content, part):
            return fault
    image_ids, category_ids = ([entry["id"] for entry in content[part]] for part in ("images", "categories"))
    if (name := _repeated(str(category["name"]) for category in content["categories"])) is not None:
        return f"the class name {name!r} is used by several categories: rename or remove all but one"
    for _, fault in faults_of_sources(content):
        return fault
    return (
        _fault_of_ids("images", image_ids)
        or _fault_of_ids("categories", category_ids)
        or _fault_of_annotations(content["annotations"], set(image_ids), set(category_ids))
    )


def _first_in_entries(content: dict, part: str) -> str | None:
    """Key by key, and not entry by entry: half the time, with a million annotations."""
    for index, entry in enumerate(content[part]):
        if not isinstance(entry, dict):
            return faults_of_entry(f"{part}[{index}]", part, entry)["id"][1]
    for key, rule in RULES[part].items():
        values = [entry.get(key) for entry in content[part]]
        if rule.usable is not is_anything and not all(map(rule.usable, values)):
            index = list(map(rule.usable, values)).index(False)
            return faults_of_entry(f"{part}[{index}]", part, content[part][index])[key][1]
    return None


def _fault_of_ids(part: str, ids: list) -> str | None:
    if (repeated := _repeated(ids)) is not None:
        return f"two {part} have the id {repeated!r}"
    if len({isinstance(one, str) for one in ids}) > 1:
        return f"the ids of {part} are partly numbers, partly texts"
    return None


def _repeated(values: Iterable) -> Any:
    """The first value that has come before, None if there is none."""
    seen = set()
    for value in values:
        if value in seen:
            return value
        seen.add(value)
    return None


def _fault_of_annotations(annotations: list[dict], image_ids: set, category_ids: set) -> str | None:
    for index, annotation in enumerate(annotations):
        image_id, category = annotation["image_id"], annotation["category_id"]
        if image_id not in image_ids:
            return f"annotations[{index}]: no image has the id {image_id!r}{hint(image_id, image_ids)}"
        if category not in category_ids:
            return f"annotations[{index}]: no category has the id {category!r}{hint(category, category_ids)}"
        if min(annotation["bbox"][2:]) < 0:
            return f"annotations[{index}]: bbox {annotation['bbox']} has a negative width or height"
    if annotations and all(is_below_a_pixel(annotation["bbox"]) for annotation in annotations):
        return f"no box is larger than a pixel, such as {annotations[0]['bbox']}: COCO's are in pixels, not in 0…1"
    return None


def hint(unknown: Any, known: Collection) -> str:
    """What to say of an id that is not among the known ones, where it is but for being a text, or none; else ""."""
    digits = isinstance(unknown, str) and unknown.isdecimal() and len(unknown) < 19
    other = int(unknown) if digits else str(unknown)
    return f" ({other!r} is there: use numbers in both places)" if other in known else ""
