"""Lists of class names that come with labels: YOLO's data.yaml, a text with a name a line, or the labels' own."""

import re
from collections.abc import Iterable
from pathlib import Path

from odutils.coco.labels import LabelledObject, read_text
from odutils.coco.rules import is_name
from odutils.errors import InputError

QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^']|'')*'"""
IN_BRACKETS = re.compile(rf"\s*(?:(\d+)\s*:\s+)?({QUOTED}|[^,\]}}#\n]*)")  # key, value: plain up to , ] }} or a comment
ON_A_LINE = re.compile(rf"\s*(?:-\s+|(\d+)\s*:\s+)({QUOTED}|(?:[^#]|(?<=\S)#)*)")  # plain up to a comment
BETWEEN = re.compile(r"\s*(?:#[^\n]*\s*)*")  # spaces, line breaks, comments


def read_classes(path: Path) -> list[str]:
    """Class names in order, from `names` of a YAML file such as YOLO's data.yaml, or from a text with one a line.

    Raises InputError if there are none, or one comes twice.
    """
    text = read_text(path)
    if path.suffix in (".yaml", ".yml"):
        return checked(yaml_names(text, path), path)
    return checked([line.strip() for line in text.splitlines() if line.strip()], path)


def checked(names: list[str], where: str | Path) -> list[str]:
    """The names. Raises InputError if there is none, one comes twice, or one is no text that can be printed."""
    if not names:
        raise InputError(f"{where}: no class names in it")
    for index, name in enumerate(names):
        if name in names[:index]:
            raise InputError(f"{where}: two classes are called {name!r}")
        if not is_name(name):
            raise InputError(f"{where}: class {index} has no name")
    return names


def classes_of(objects: Iterable[list[LabelledObject]], wanted: list[str] | None, where: str | Path) -> list[str]:
    """The classes that objects have, by name; or those of `wanted`, in its order.

    Raises InputError if an object has a class that `wanted` lacks, or there are no classes at all.
    """
    found = sorted({one.name for of_image in objects for one in of_image})
    if wanted is None:
        return checked(found, where)
    if unknown := [name for name in found if name not in wanted]:
        raise InputError(f"{where}: its classes {', '.join(unknown)} are not in the file of --classes")
    return wanted


def yaml_names(text: str, path: Path) -> list[str]:
    """The list `names`, or its mapping from numbers, in each of the ways in which YAML can write them.

    By hand: one key of a file that has a dozen is not worth a dependency.   Raises InputError if there is none.
    """
    start = re.search(r"^names\s*:", text, re.MULTILINE)
    if not start:
        raise InputError(f"{path}: no `names` in it")
    where = f"{path}, line {text[: start.start()].count(chr(10)) + 1}"
    rest = text[start.end() :]
    begin = BETWEEN.match(rest).end()
    items = in_brackets(rest, begin, where) if rest[begin : begin + 1] in ("[", "{") else on_lines(rest, where)
    if any(key is not None for key, _ in items):
        if sorted(int(key or -1) for key, _ in items) != list(range(len(items))):
            raise InputError(f"{where}: the `names` are not numbered from 0 to {len(items) - 1}")
        items.sort(key=lambda item: int(item[0]))
    return [unquoted(value.strip()) for _, value in items]


def in_brackets(text: str, begin: int, where: str) -> list[tuple[str | None, str]]:
    """[a, b] or {0: a, 1: b}, over as many lines as it takes -> (key, value) of each entry."""
    items, end = [], BETWEEN.match(text, begin + 1).end()
    while text[end : end + 1] not in ("]", "}"):
        entry = IN_BRACKETS.match(text, end)
        items.append(entry.groups())
        end = BETWEEN.match(text, entry.end()).end()
        if text[end : end + 1] == ",":
            end = BETWEEN.match(text, end + 1).end()
        elif text[end : end + 1] not in ("]", "}"):
            raise InputError(f"{where}: the list of `names` has no end")
    return items


def on_lines(text: str, where: str) -> list[tuple[str | None, str]]:
    """A line each, "- a" or "0: a" -> (key, value) of each."""
    items = []
    for number, line in enumerate(text.splitlines()):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = ON_A_LINE.match(line)
        if entry is None and number and not line[0].isspace():
            break  # the next key of the file
        if entry is None:
            raise InputError(f"{where}: `names` is no list and no mapping from numbers")
        items.append(entry.groups())
    return items


def unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    if len(text) > 1 and text[0] == text[-1] == '"':
        return re.sub(r"\\(.)", r"\1", text[1:-1])
    return text
