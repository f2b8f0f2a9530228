"""Labels of other formats into a data set in COCO's layout: YOLO's, PASCAL VOC's, Label Studio's.

Everything is read and judged before anything is written; what cannot be written whole is taken back.
"""

import filecmp
import json
import shutil
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from odutils.coco.label_studio import read_label_studio
from odutils.coco.labels import ImageFolder, Labels
from odutils.coco.rules import fault_of_box, is_below_a_pixel
from odutils.coco.voc import read_voc
from odutils.coco.yolo import read_yolo
from odutils.errors import InputError
from odutils.files import replacing
from odutils.progress import MANY, bar

READERS = {"yolo": read_yolo, "voc": read_voc, "label-studio": read_label_studio}
DECIMALS = 3  # of a pixel


class Converted(NamedTuple):
    """What `convert` wrote."""

    file: Path
    images: int
    empty: int  # of them without an object
    objects: dict[str, int]  # by class, in the order of the category ids
    notes: list[str]  # what was passed over or changed, a sentence each


def convert(
    source: str | Path,
    kind: str,
    images: str | Path,
    out: str | Path,
    split: str = "train",
    classes: str | Path | None = None,
) -> Converted:
    """Write out/annotations/instances_{split}.json and copy the images to out/{split}/, under their names in `images`.

    source: YOLO's and VOC's folder of label files, Label Studio's JSON file.   kind: a key of READERS.
    classes: a file with the names of the classes; see the readers for where they come from without one.
    What `out` holds already stays: an annotation file that is there is refused, and so is an image with other content.
    Raises InputError for that, for labels that cannot be used, for a broken image (UnreadableError), and for a place
    that cannot be written to; then everything is as it was before.
    """
    file = Path(out, "annotations", f"instances_{split}.json")
    if PurePosixPath(split).name != split or "\\" in split or split in ("", ".", "..", "annotations"):
        raise InputError(f"split {split!r}: must be the name of a folder")
    if file.exists():
        raise InputError(f"{file}: already exists: choose another --split or --out, or remove it")
    folder = ImageFolder(images)
    labels = READERS[kind](Path(source), folder, Path(classes) if classes else None)
    content = to_coco(labels, folder, f"converted from {kind} by odutils")
    copies = {name: Path(out, split, *PurePosixPath(name).parts) for name in labels.objects}
    write(file, content, {folder.paths[name]: target for name, target in copies.items()})
    counts = Counter(one.name for of_image in labels.objects.values() for one in of_image)
    small = sum(is_below_a_pixel(one["bbox"]) for one in content["annotations"])
    notes = labels.notes + ([f"boxes below a pixel: {small}; `check` lists them"] if small else [])
    notes += [f"{images}: passed over: {folder.passed_over}"] if folder.passed_over else []
    empty = sum(not of_image for of_image in labels.objects.values())
    return Converted(file, len(labels.objects), empty, {name: counts[name] for name in labels.classes}, notes)


def to_coco(labels: Labels, folder: ImageFolder, description: str) -> dict:
    """Labels as the content of a COCO file: ids count from 1, categories in the order of the classes.

    Raises InputError for a box so small that nothing is left of it when it is rounded.
    """
    category_of = {name: number for number, name in enumerate(labels.classes, start=1)}
    images, annotations = [], []
    for image_id, name in enumerate(sorted(labels.objects), start=1):
        width, height = folder.sizes[name]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for one in labels.objects[name]:
            left, top, right, bottom = one.box
            bbox = [round(side, DECIMALS) for side in (left, top, right - left, bottom - top)]
            if fault_of_box(bbox, width, height) == "box without area":
                raise InputError(f"{name}: a box of {one.name} has no area when rounded to {DECIMALS} decimals: {bbox}")
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": category_of[one.name]}
            annotation |= {"bbox": bbox, "area": round(bbox[2] * bbox[3], DECIMALS), "iscrowd": 0}
            annotations.append(annotation | ({"difficult": 1} if one.difficult else {}))
    categories = [{"id": number, "name": name} for name, number in category_of.items()]
    info = {"description": description}
    return {"info": info, "images": images, "annotations": annotations, "categories": categories}


def write(file: Path, content: dict, copies: dict[Path, Path]) -> None:
    """Copy images, source -> target, then write the annotation file; all of it or nothing."""
    for source, target in copies.items():
        if target.exists() and not filecmp.cmp(source, target, shallow=False):
            raise InputError(f"{target}: already exists, with other content than {source}")
    folders = {folder for target in (file, *copies.values()) for folder in target.parents if not folder.exists()}
    new = [(source, target) for source, target in copies.items() if not target.exists()]
    done = []
    try:
        for source, target in bar(new, unit="images", show=len(new) >= MANY):
            with replacing(target) as temporary:
                shutil.copyfile(source, temporary)
            done.append(target)
        with replacing(file) as temporary:
            temporary.write_text(json.dumps(content))
    except BaseException:
        for target in done:
            target.unlink(missing_ok=True)
        for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise
