"""YOLO's labels: a text file for each image, a line for each object, `class x y width height`.

The class counts from 0; x, y is the centre of the box. All four are normalised coordinates: divided by the image's
width or height. A line with more numbers, `class x1 y1 x2 y2 x3 y3 …`, is the polygon around an object, which becomes
the box around that. (Keypoints of YOLO's pose labels, `class x y width height x1 y1 …`, cannot be told from polygons.)
"""

import math
import reprlib
from pathlib import Path

from odutils.coco.class_names import read_classes
from odutils.coco.labels import ImageFolder, LabelledObject, Labels, inside, label_files, read_all, read_text
from odutils.errors import InputError, plural

NAME_FILES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")  # what holds the names of classes
ABOVE = 2  # folders above that of the labels in which exports put them: root/labels/train, root/train/labels
ROUNDING = 1e-3  # coordinates that reach so far beyond 0…1 are taken for rounded ones


def read_yolo(source: Path, images: ImageFolder, classes_file: Path | None = None) -> Labels:
    """Read a folder of labels. A label belongs to the image of the same name; images without one have no objects.

    Texts without an image that hold no labels, such as a README.txt, are passed over.
    classes_file: the names of the classes; default: data.yaml or classes.txt in the folder or in the two above it.
    Raises InputError for the first fault, with file and line, and how many more there are.
    """
    files = [file for file in label_files(source, ".txt") if file.name not in NAME_FILES]
    classes_file = classes_file or find_names(source)
    classes = read_classes(classes_file)
    objects: dict[str, list[LabelledObject]] = {name: [] for name in images.paths}
    seen: set[str] = set()
    passed_over, polygons = [], 0

    def read(file: Path) -> None:
        nonlocal polygons
        stem = file.relative_to(source).with_suffix("").as_posix()
        if stem not in images.by_stem and is_other_text(read_text(file)):
            passed_over.append(file.name)
            return
        name = images.with_stem(stem, file)
        seen.add(name)
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if words := line.split():
                objects[name].append(parse(words, classes, images.sizes[name], f"{file}, line {number}"))
                polygons += len(words) > 5

    read_all(files, read)
    if not seen:
        raise InputError(f"{source}: no label file in it belongs to an image in {images.folder}")
    notes = [f"class names: {classes_file}"]
    if polygons:
        keypoints = "keypoints of pose labels look the same, and would give wrong boxes"
        notes.append(f"{plural(polygons, 'polygon')} became the bounding boxes around them ({keypoints})")
    if passed_over:
        notes.append(f"passed over, no labels: {', '.join(passed_over)}")
    if unlabelled := len(objects) - len(seen):
        notes.append(f"no label file for {plural(unlabelled, 'image')}: taken as images without objects")
    return Labels(classes, objects, notes)


def is_other_text(text: str) -> bool:
    """Whether a file holds something else than labels: it has lines, but none begins with five numbers."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return bool(lines) and not any(len(words) > 4 and all(map(is_float, words[:5])) for words in lines)


def is_float(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def parse(words: list[str], classes: list[str], size: tuple[int, int], where: str) -> LabelledObject:
    """A line's words -> the object.   size: (width, height) in pixels.   Raises InputError, beginning with `where`."""
    if not (words[0].isdecimal() and len(words[0]) < 10 and int(words[0]) < len(classes)):
        raise InputError(f"{where}: class {reprlib.repr(words[0])} is not a number from 0 to {len(classes) - 1}")
    try:
        numbers = [float(word) for word in words[1:]]
    except ValueError:
        raise InputError(f"{where}: {' '.join(words[1:])[:60]!r} are not numbers") from None
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        expected = "4 (x, y, width, height) or the 6 or more of a polygon, an even number"
        raise InputError(f"{where}: {len(numbers)} numbers after the class, not {expected}")
    if wrong := [number for number in numbers if not -ROUNDING <= number <= 1 + ROUNDING]:  # NaN is none, either
        hint = ": are these pixels?" if max(map(abs, wrong)) > 2 and all(map(math.isfinite, wrong)) else ""
        raise InputError(f"{where}: {wrong[0]:g} is not a normalised coordinate, from 0 to 1{hint}")
    if len(numbers) == 4:
        x, y, width, height = numbers
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        left, top, right, bottom = min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])
    box = left * size[0], top * size[1], right * size[0], bottom * size[1]
    return LabelledObject(classes[int(words[0])], inside(box, size, where))


def find_names(source: Path) -> Path:
    """The file with the names of the classes. Raises InputError if there is none."""
    folders = [source.resolve(), *source.resolve().parents][: ABOVE + 1]
    for folder in folders:
        for name in NAME_FILES:
            if (folder / name).is_file():
                return folder / name
    raise InputError(f"{source}: no data.yaml and no classes.txt, there or above: name the file with --classes")
