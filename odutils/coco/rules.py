"""What is a fault in a COCO file: the one place that says so.

`checking` lists every fault; `reading` refuses a file at the first one that would make training or evaluation wrong.
A rule has a test for each: `holds` and `usable`. Whatever holds is usable, so what `check` passes can be trained on.
Keys that nothing here reads (segmentation, licence, …) may hold anything.
"""

import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple


class Rule(NamedTuple):
    """What the value of a key must be. A missing key is tested as None, which is what JSON's null becomes."""

    holds: Callable[[Any], bool]
    words: str
    usable: Callable[[Any], bool]  # what training and evaluation can work with: at least what `holds` accepts


def is_number(value: Any) -> bool:
    """A finite number that fits into a float; True and False are none."""
    return type(value) in (int, float) and abs(value) < 1e300


def is_id(value: Any) -> bool:
    return type(value) is int and abs(value) < 1 << 63


def is_usable_id(value: Any) -> bool:
    return is_id(value) or isinstance(value, str) or (isinstance(value, float) and abs(value) < 1 << 53)


def is_name(value: Any) -> bool:
    """A text of more than spaces, and without lone surrogates, which are half a character and cannot be printed."""
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def is_box(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(is_number, value))


def is_length(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 31


def is_flag(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value in (0, 1))


def is_area(value: Any) -> bool:
    return value is None or (is_number(value) and 0 <= value <= 1e10)  # pycocotools leaves out what is larger


def is_name_or_nothing(value: Any) -> bool:
    return value is None or is_name(value)


def is_name_or_number(value: Any) -> bool:
    return is_name(value) or is_number(value)


def is_anything(value: Any) -> bool:
    return True


ID = Rule(is_id, "a whole number", is_usable_id)
NAME = Rule(is_name, "a text", is_name)
NUMBER = Rule(is_number, "a finite number", is_number)
LENGTH = Rule(is_length, "a whole number of pixels above 0", is_anything)  # the image itself says how large it is
FLAG = Rule(is_flag, "0 or 1", is_flag)
BOX = Rule(is_box, "four finite numbers [x, y, w, h]", is_box)
RULES = {
    "categories": {"id": ID, "name": NAME._replace(usable=is_name_or_number)},  # a class called 7 is read as "7"
    "images": {
        "id": ID,
        "file_name": NAME,
        "width": LENGTH,
        "height": LENGTH,
        "source": Rule(is_name_or_nothing, "a text", is_name_or_nothing),
    },
    "annotations": {
        "id": ID._replace(usable=is_anything),  # they are numbered anew where their ids are of no use
        "image_id": ID,
        "category_id": ID,
        "bbox": BOX,
        "iscrowd": FLAG,
        "difficult": FLAG,
        "ignore": FLAG,
        "area": Rule(is_area, "a number of square pixels, 0 or more", is_area),
    },
}
OUTSIDE = 0.5  # pixels that a box may reach beyond its image: rounding, in COCO's own files too


def fault_of_part(content: dict, part: str) -> tuple[str, str] | None:
    """(kind, message) of what is wrong with one of the file's three lists as a whole, None if nothing is."""
    if not isinstance(content.get(part), list):
        return ("wrong type" if part in content else "missing key"), f"the file has no {part!r}, or it is not a list"
    if not content[part] and part != "annotations":
        return f"no {part}", f"the file's list of {part} is empty"
    return None


def faults_of_entry(where: str, part: str, entry: Any) -> dict[str, tuple[str, str]]:
    """Key -> (kind, message) for each key of an entry that is not as it must be; all keys fail what is no object."""
    if not isinstance(entry, dict):
        return dict.fromkeys(RULES[part], ("wrong type", f"{where} is {reprlib.repr(entry)}, not an object"))
    faults = {}
    for key, rule in RULES[part].items():
        if not rule.holds(entry.get(key)):
            said = f"{where}: {key!r} is {reprlib.repr(entry.get(key))}, not {rule.words}"
            faults[key] = ("wrong type", said) if key in entry else ("missing key", f"{where} has no {key!r}")
    return faults


def faults_of_sources(content: dict, classes: set[str] | None = None) -> list[tuple[str, str]]:
    """(kind, message) of what is wrong with `labelled_classes_by_source`, {source: [class names]}, if a file has it.

    classes: those of the file, where names of others are a fault, too.
    """
    sources = content.get("labelled_classes_by_source")
    if not isinstance(sources, dict | None):
        return [("wrong type", f"labelled_classes_by_source is {reprlib.repr(sources)}, not an object")]
    faults = []
    for source, names in (sources or {}).items():
        where = f"labelled_classes_by_source[{source!r}]"
        if not isinstance(names, list) or not all(map(is_name, names)):
            faults.append(("wrong type", f"{where} is {reprlib.repr(names)}, not a list of names"))
        elif classes is not None and (unknown := sorted(set(names) - classes)):
            faults.append(("unknown category", f"{where} names {', '.join(unknown)}: no such category"))
    return faults


def fault_of_box(box: list[float], right: float, bottom: float) -> str | None:
    """What is wrong with a box [x, y, w, h] in an image of right × bottom pixels, None if nothing is."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "box without area"
    if is_below_a_pixel(box):
        return "box below a pixel"
    if max(-x, -y, x + width - right, y + height - bottom) <= OUTSIDE:
        return None
    if 0 <= x < width <= right + OUTSIDE and 0 <= y < height <= bottom + OUTSIDE:
        return "box as corners"
    if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        return "box outside"
    return "box partly outside"


HINTS = {
    "box below a pixel": "; are these shares of 0…1? COCO's boxes are in pixels",
    "box as corners": "; it would fit as x1, y1, x2, y2, but COCO's form is [x, y, w, h]",
}


def is_below_a_pixel(box: list[float]) -> bool:
    """Whether a box [x, y, w, h] is so small that its sides must be shares of the image's."""
    return max(box[2:]) <= 1
