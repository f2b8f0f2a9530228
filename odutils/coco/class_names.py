"""Lists of class names that come with labels: YOLO's data.yaml, a text with a name a line, or the labels' own."""

from collections.abc import Iterable
from pathlib import Path

from odutils.coco.labels import LabelledObject, read_text
from odutils.coco.rules import is_name
from odutils.errors import InputError, plain_text


def read_classes(path: Path) -> list[str]:
    """Class names in order, from `names` of a YAML file such as YOLO's data.yaml, or from a text with one a line.

    Raises InputError if there are none, or one comes twice.
    """
    text = read_text(path)
    if path.suffix.lower() in (".yaml", ".yml"):
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
    """The list `names`, or its mapping from the numbers 0…C-1. Raises InputError if there is none."""
    import yaml

    try:
        content = yaml.load(text, yaml.BaseLoader)  # every scalar stays text: a class may be called 7, or no
    except yaml.YAMLError as error:
        raise InputError(f"{path}: cannot be read as YAML ({plain_text(error)})") from None
    except RecursionError:
        raise InputError(f"{path}: cannot be read as YAML (nested too deeply)") from None
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if sorted(names) != sorted(map(str, range(len(names)))):
            raise InputError(f"{path}: the `names` are not numbered from 0 to {len(names) - 1}")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{path}: its `names` are neither a list nor a mapping from numbers")
    return [name.strip() for name in names]
