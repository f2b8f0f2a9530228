"""Rebuild the photographs that the race and the shipped weights use, from COCO 2017 and PASCAL VOC.

    python benchmarks/rebuild_photos.py --coco coco_2017 --voc VOCdevkit --out photos
    python benchmarks/race.py --data photos

--coco has annotations/instances_{train,val}2017.json and {train,val}2017/ (`python -m odutils download coco`), --voc
has VOC2007/ and VOC2012/ with Annotations/ and JPEGImages/ (http://host.robots.ox.ac.uk/pascal/VOC/). Which images is
told by the lists of original ids in data/weights, one for each of the splits train, dev and dev_large. Images come
out with their longer side at 320 px. VOC knows 20 classes and COCO 80: the file says so for each source. (The set
that the figures in this folder were measured on took some of its COCO boxes from lists in whole pixels, and has none
of VOC 2012's objects marked difficult: expect small differences.)
"""

import argparse
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from odutils.classes import CLASSES
from odutils.errors import InputError
from odutils.files import DATA, replacing
from odutils.images import fit, read_image

LONGER_SIDE = 320  # px
# VOC's names where COCO has another.
RENAMED = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
VOC_CLASSES = (
    "person bird cat cow dog horse sheep airplane bicycle boat bus car motorcycle train bottle chair".split()
    + ["dining table", "potted plant", "couch", "tv"]
)  # fmt: skip
SPLITS = {"train": "trained_on.json", "dev": "measured_on_dev.json", "dev_large": "measured_on_dev_large.json"}
Labelled = tuple[Path, list[dict]]  # an image, and its objects: name, bbox in pixels of the original, iscrowd, …


def of_coco(coco: Path, split: str, wanted: list[int]) -> Iterator[tuple[int, Labelled]]:
    """The images `wanted`, by id, with their objects."""
    content = json.loads((coco / "annotations" / f"instances_{split}2017.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    files = {image["id"]: image["file_name"] for image in content["images"]}
    objects: dict[int, list[dict]] = {id_: [] for id_ in wanted}
    for annotation in content["annotations"]:
        if annotation["image_id"] in objects:
            kept = {key: annotation[key] for key in ("bbox", "iscrowd", "area")}
            objects[annotation["image_id"]].append(kept | {"name": names[annotation["category_id"]]})
    for id_ in wanted:
        if id_ not in files:
            raise InputError(f"{coco}: instances_{split}2017.json has no image {id_}")
        yield id_, (coco / f"{split}2017" / files[id_], objects[id_])


def of_voc(voc: Path, year: str, wanted: list[str]) -> Iterator[tuple[str, Labelled]]:
    """The same for PASCAL VOC, whose boxes count pixels from 1 and include the last."""
    folder = voc / f"VOC{year}"
    for id_ in wanted:
        file = folder / "Annotations" / f"{id_}.xml"
        if not file.is_file():
            raise InputError(f"{file}: no such file; is {voc} the folder that holds VOC2007 and VOC2012?")
        objects = []
        for one in ElementTree.parse(file).iter("object"):
            left, top, right, bottom = (float(one.find("bndbox").findtext(k)) for k in ("xmin", "ymin", "xmax", "ymax"))
            bbox = [left - 1, top - 1, right - left + 1, bottom - top + 1]
            name, difficult = one.findtext("name"), int(one.findtext("difficult") or 0)
            objects.append({"name": RENAMED.get(name, name), "bbox": bbox, "iscrowd": 0, "difficult": difficult})
        yield id_, (folder / "JPEGImages" / f"{id_}.jpg", objects)


def rebuild_split(ids_by_source: dict[str, list], coco: Path, voc: Path, out: Path, split: str) -> int:
    """Write one split in COCO's layout. Returns the number of its images."""
    (out / split).mkdir(parents=True, exist_ok=True)
    (out / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for source, wanted in ids_by_source.items():
        collection, part = source.split("_")
        found = of_coco(coco, part, wanted) if collection == "coco2017" else of_voc(voc, collection[3:], wanted)
        for original_id, (file, objects) in found:
            image = read_image(file)
            height, width = image.shape[:2]
            scale = LONGER_SIDE / max(height, width)
            shape = (max(1, round(height * scale)), max(1, round(width * scale)))
            small, _ = fit(image, LONGER_SIDE, shape=shape)
            name = f"{source}_{file.stem}.jpg"
            with replacing(out / split / name) as temporary:
                Image.fromarray(small).save(temporary, "JPEG", quality=92)
            about = dict(file_name=name, height=shape[0], width=shape[1], source=source, original_id=original_id)
            images.append({"id": len(images) + 1} | about)
            ratio = np.tile([shape[1] / width, shape[0] / height], 2)
            for one in objects:
                box = (np.array(one["bbox"]) * ratio).round(2)
                area = one["area"] * ratio[:2].prod() if "area" in one else box[2] * box[3]
                label = {"id": len(annotations) + 1, "image_id": len(images), "bbox": box.tolist(), "area": float(area)}
                label |= {"category_id": CLASSES.index(one["name"]) + 1, "iscrowd": one["iscrowd"]}
                annotations.append(label | {"difficult": one.get("difficult", 0)})
    labelled = {source: VOC_CLASSES if source.startswith("voc") else list(CLASSES) for source in ids_by_source}
    categories = [{"id": label, "name": name} for label, name in enumerate(CLASSES, start=1)]
    content = dict(images=images, annotations=annotations, categories=categories, labelled_classes_by_source=labelled)
    with replacing(out / "annotations" / f"instances_{split}.json") as temporary:
        temporary.write_text(json.dumps(content))
    return len(images)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--coco", type=Path, required=True)
    parser.add_argument("--voc", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    for split, file in SPLITS.items():
        ids_by_source = json.loads((DATA / "weights" / file).read_text())
        try:
            count = rebuild_split(ids_by_source, args.coco, args.voc, args.out, split)
        except (InputError, OSError) as error:
            parser.exit(1, f"{error}\n")
        print(f"{split}: {count} images in {args.out / split}")


if __name__ == "__main__":
    main()
