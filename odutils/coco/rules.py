"""What each key of a COCO file must be, so that a detector can be trained and scored with it.

Keys that nothing here reads (segmentation, licence, …) may be anything. `iscrowd` and `area` may be missing.
"""

import json
import reprlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from odutils.errors import InputError


class Rule(NamedTuple):
    """What a value must be: a test, and the words for it."""

    holds: Callable[[Any], bool]
    words: str


def is_number(value: Any) -> bool:
    """A finite number that fits into a float; True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


OUTSIDE = 0.5  # pixels that a box may reach beyond its image: rounding, in COCO's own files too
ID = Rule(lambda v: type(v) is int and abs(v) < 1 << 63, "a whole number")
LENGTH = Rule(lambda v: type(v) is int and 0 < v < 1 << 31, "a whole number of pixels above 0")
NAME = Rule(lambda v: isinstance(v, str) and bool(v.strip()), "a text")
NUMBER = Rule(is_number, "a finite number")
FLAG = Rule(lambda v: isinstance(v, int) and v in (0, 1), "0 or 1")
BOX = Rule(lambda v: isinstance(v, list) and len(v) == 4 and all(map(is_number, v)), "four finite numbers [x, y, w, h]")
REQUIRED = {
    "categories": {"id": ID, "name": NAME},
    "images": {"id": ID, "file_name": NAME, "width": LENGTH, "height": LENGTH},
    "annotations": {"id": ID, "image_id": ID, "category_id": ID, "bbox": BOX},
}
OPTIONAL = {
    "categories": {},
    "images": {"source": NAME},
    "annotations": {"iscrowd": FLAG, "difficult": FLAG, "ignore": FLAG, "area": NUMBER},
}


def load_json(path: Path) -> Any:
    """What a JSON file holds. Raises InputError, with line and column where they are known, if it is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (OSError, ValueError, RecursionError) as error:  # no permission, not UTF-8, numbers or nesting without end
        raise InputError(f"{path}: cannot be read as JSON ({type(error).__name__}: {error})") from None


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises InputError if it holds none."""
    content = load_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {reprlib.repr(content)}, not an object")
    return content


def sort_out(where: str, part: str, entry: Any) -> tuple[dict, list[tuple[str, str]]]:
    """The keys of an entry of `part` that are as they must be, and (kind, message) of each fault of the others."""
    if not isinstance(entry, dict):
        return {}, [("wrong type", f"{where} is {reprlib.repr(entry)}, not an object")]
    valid, faults = {}, []
    for key, rule in (REQUIRED[part] | OPTIONAL[part]).items():
        if key not in entry:
            if key in REQUIRED[part]:
                faults.append(("missing key", f"{where} has no {key!r}"))
        elif rule.holds(entry[key]):
            valid[key] = entry[key]
        else:
            faults.append(("wrong type", f"{where}: {key!r} is {reprlib.repr(entry[key])}, not {rule.words}"))
    return valid, faults


def fault_of_box(box: list[float], right: float, bottom: float) -> str | None:
    """What is wrong with a box [x, y, w, h] in an image of right × bottom pixels, None if nothing is."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "box without area"
    if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        return "box outside"
    if max(-x, -y, x + width - right, y + height - bottom) > OUTSIDE:
        return "box partly outside"
    return None
