"""PASCAL VOC's labels: an XML file for each image, an <object> with a <bndbox> for each object.

xmin, ymin, xmax, ymax are numbers of pixels, counted from 1, and the box includes the last one: the box xyxy of VOC's
(1, 1, 10, 10) is (0, 0, 10, 10).
"""

import re
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree
from xml.parsers import expat

from odutils.coco.class_names import classes_of, read_classes
from odutils.coco.labels import ImageFolder, LabelledObject, Labels, inside, label_files, read_all
from odutils.coco.rules import is_number
from odutils.errors import InputError, plain_text, plural

SIDES = ("xmin", "ymin", "xmax", "ymax")


def read_voc(source: Path, images: ImageFolder, classes_file: Path | None = None) -> Labels:
    """Read a folder of labels. A label belongs to the image of its own name, or else of its <filename>,
    which also decides between a.jpg and a.png.

    classes_file: the names of the classes in order; default: those that the labels have, in alphabetical order.
    Images without a label have no objects.   Raises InputError for the first fault, with file and line, and how many
    more there are.
    """
    wanted = read_classes(classes_file) if classes_file else None
    objects: dict[str, list[LabelledObject]] = {name: [] for name in images.paths}
    seen: set[str] = set()

    def read(file: Path) -> None:
        root, lines = parse(file)
        name = image_of(file, source, root, images)
        if name in seen:
            raise InputError(f"{file}: another file has labels of {name}, too")
        seen.add(name)
        size = images.sizes[name]
        compare_sizes(file, root, size)
        objects[name] = [read_object(one, f"{file}, line {lines[one]}", size) for one in root.findall("object")]

    read_all(label_files(source, ".xml"), read)
    unlabelled = len(objects) - len(seen)
    notes = [f"no label file for {plural(unlabelled, 'image')}: taken as images without objects"] if unlabelled else []
    return Labels(classes_of(objects.values(), wanted, source), objects, notes)


def parse(file: Path) -> tuple[ElementTree.Element, dict[ElementTree.Element, int]]:
    """The root of an XML file, and the line on which each element begins, which ElementTree itself does not tell."""
    builder, parser, lines = ElementTree.TreeBuilder(), expat.ParserCreate(), {}

    def start(tag: str, attributes: dict) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = start, builder.end, builder.data
    try:
        parser.Parse(file.read_bytes(), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise InputError(f"{file}, line {error.lineno}: not XML ({reason})") from None
    except (LookupError, ValueError) as error:  # expat asks Python for an encoding that it lacks itself, such as GBK
        reason = plain_text(error)
        raise InputError(f"{file}: its encoding cannot be read ({reason}): save the file as UTF-8") from None
    root = builder.close()
    if root.tag != "annotation":
        raise InputError(f"{file}, line {lines[root]}: <{root.tag}>, not the <annotation> of PASCAL VOC")
    return root, lines


def image_of(file: Path, source: Path, root: ElementTree.Element, images: ImageFolder) -> str:
    """The image that has the label file's name; where none has it, or several have, the image that <filename> names."""
    stem = file.relative_to(source).with_suffix("").as_posix()
    named = PurePosixPath((root.findtext("filename") or "").strip().replace("\\", "/"))
    candidates = images.by_stem.get(stem, [])
    if len(candidates) == 1 or not named.name:  # "." and "/" name nothing
        return images.with_stem(stem, file)
    for name in (str(PurePosixPath(stem).parent / named), str(named)):
        if name in (candidates or images.paths):
            return name
    return images.with_stem(stem if candidates else str(named.with_suffix("")), file)


def compare_sizes(file: Path, root: ElementTree.Element, size: tuple[int, int]) -> None:
    """Boxes of an image of another size, or of one that its EXIF entry turns, would lie anywhere: refuse them."""
    labelled = tuple((root.findtext(f"size/{side}") or "0").strip() for side in ("width", "height"))
    labelled = tuple(re.sub(r"\.0*$", "", side) for side in labelled)  # some tools write 200.0
    actual = tuple(map(str, size))
    if labelled != actual and "0" not in labelled:  # some tools write 0 × 0
        turned = ": its EXIF entry turns it" if labelled == actual[::-1] else ""
        raise InputError(
            f"{file}: labels an image of {' × '.join(labelled)} pixels, but the image has {' × '.join(actual)}{turned}"
        )


def read_object(element: ElementTree.Element, where: str, size: tuple[int, int]) -> LabelledObject:
    """An <object> -> the object.   size: (width, height) in pixels.   Raises InputError, beginning with `where`."""
    name = (element.findtext("name") or "").strip()
    if not name:
        raise InputError(f"{where}: an object without <name>")
    sides = []
    for side in SIDES:
        text = (element.findtext(f"bndbox/{side}") or "").strip()
        try:
            sides.append(float(text))
        except ValueError:
            raise InputError(f"{where}: {name}: <{side}> is {text!r}, not a number") from None
    if not all(map(is_number, sides)):
        raise InputError(f"{where}: {name}: a side of the box is not finite")
    xmin, ymin, xmax, ymax = sides
    difficult = (element.findtext("difficult") or "").strip().lower() not in ("", "0", "false", "no")
    return LabelledObject(name, inside((xmin - 1, ymin - 1, xmax, ymax), size, f"{where}: {name}"), difficult)
