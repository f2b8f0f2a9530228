"""YOLO's labels: a text file for each image, a line for each object, `class x y width height`.

The class counts from 0; x, y is the centre of the box, and all four are shares of the image's width or height. A line
with more numbers, `class x1 y1 x2 y2 x3 y3 …`, is the outline of an object, which becomes the box around it.
"""

import math
from pathlib import Path

from odutils.coco.class_names import read_classes
from odutils.coco.labels import ImageFolder, LabelledObject, Labels, inside, label_files, read_all, read_text
from odutils.errors import InputError, plural

NAME_FILES = ("data.yaml", "dataset.yaml", "data.yml", "classes.txt", "obj.names")  # what holds the names of classes
ABOVE = 2  # folders above that of the labels in which exports put them: root/labels/train, root/train/labels
ROUNDING = 1e-3  # shares that reach so far beyond 0…1 are taken for rounded ones


def read_yolo(source: Path, images: ImageFolder, classes_file: Path | None = None) -> Labels:
    """Read a folder of labels. A label belongs to the image of the same name; images without one have no objects.

    classes_file: the names of the classes; default: data.yaml or classes.txt in the folder or in the two above it.
    Raises InputError for the first fault, with file and line, and how many more there are.
    """
    files = [file for file in label_files(source, ".txt") if file.name not in NAME_FILES]
    classes_file = classes_file or find_names(source)
    classes = read_classes(classes_file)
    objects: dict[str, list[LabelledObject]] = {name: [] for name in images.paths}
    seen: set[str] = set()
    outlines = 0

    def read(file: Path) -> None:
        nonlocal outlines
        name = images.with_stem(file.relative_to(source).with_suffix("").as_posix(), file)
        seen.add(name)
        for number, line in enumerate(read_text(file).splitlines(), start=1):
            if words := line.split():
                objects[name].append(parse(words, classes, images.sizes[name], f"{file}, line {number}"))
                outlines += len(words) > 5

    read_all(files, read)
    notes = [f"{plural(outlines, 'outline')} became the bounding boxes around them"] if outlines else []
    notes.append(f"class names: {classes_file}")
    if unlabelled := len(objects) - len(seen):
        notes.append(f"no label file for {plural(unlabelled, 'image')}: taken as images without objects")
    return Labels(classes, objects, notes)


def parse(words: list[str], classes: list[str], size: tuple[int, int], where: str) -> LabelledObject:
    """A line's words -> the object.   size: (width, height) in pixels.   Raises InputError, beginning with `where`."""
    if not words[0].isdecimal() or int(words[0]) >= len(classes):
        raise InputError(f"{where}: class {words[0]!r} is not a number from 0 to {len(classes) - 1}")
    try:
        shares = [float(word) for word in words[1:]]
    except ValueError:
        raise InputError(f"{where}: {' '.join(words[1:])[:60]!r} are not numbers") from None
    if len(shares) != 4 and (len(shares) < 6 or len(shares) % 2):
        said = "4 (x, y, width, height) or the 6 or more of an outline, an even number"
        raise InputError(f"{where}: {len(shares)} numbers after the class, not {said}")
    if wrong := [share for share in shares if not -ROUNDING <= share <= 1 + ROUNDING]:  # NaN is none, either
        hint = ": are these pixels?" if max(map(abs, wrong)) > 2 and all(map(math.isfinite, wrong)) else ""
        raise InputError(f"{where}: {wrong[0]:g} is not a share from 0 to 1{hint}")
    if len(shares) == 4:
        x, y, width, height = shares
        left, top, right, bottom = x - width / 2, y - height / 2, x + width / 2, y + height / 2
    else:
        left, top, right, bottom = min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2])
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
