"""The sample data set: drawn scenes in COCO's layout, for readers who have not downloaded COCO.

It needs no download and takes seconds; the same seed draws the same bytes (with the same versions of NumPy and OpenCV).
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import cv2
from numpy.random import default_rng

from odutils.classes import CATEGORY_IDS, CLASSES
from odutils.errors import InputError
from odutils.files import whole_folder
from odutils.sample.scenes import Scene, draw_scene, load_sprites

DESCRIPTION = "odutils sample"  # in every annotation file: what may be replaced by another sample
DRAWING = 1  # counts changes of how scenes look: an older sample is drawn again
JPEG_QUALITY = 92


def make_sample(
    root: str | os.PathLike,
    images: int | tuple[int, int] = (160, 40),
    size: int = 320,
    seed: int = 0,
    objects: tuple[int, int] = (1, 6),
) -> Path:
    """Write `root/annotations/instances_{train,val}.json` and the images in `root/train/`, `root/val/`.

    images: how many for train and for val; a single number is the sum, of which a fifth goes to val.
    size: the longer side in pixels.   seed: image i of a split depends on the seed, the split and i only.
    `root` appears when it is whole. The same sample that is there already is kept; another one is replaced; a folder
    with anything else in it is refused. Returns `root`. Raises InputError for that, for numbers that make no sense, for
    missing sprites, and for a place that cannot be written to.
    """
    counts = (images - images // 5, images // 5) if isinstance(images, int) else tuple(images)
    if min(counts) < 0 or sum(counts) < 1:
        raise InputError(f"images={images}: a sample needs at least one image")
    if size < 64 or not 1 <= objects[0] <= objects[1]:
        raise InputError(f"size={size}, objects={objects}: images need 64 pixels or more, and scenes an object or more")
    if seed < 0:
        raise InputError(f"seed={seed}: must be 0 or more")
    settings = {"images": counts, "size": size, "seed": seed, "objects": objects, "drawing": DRAWING}
    info = json.loads(json.dumps({"description": DESCRIPTION, "settings": settings}))
    folder = Path(root).resolve()  # a link is followed, not replaced
    found = _sample_in(folder)
    if found == info:
        return Path(root)
    sprites = load_sprites()
    with whole_folder(folder) as temporary:
        for chapter, (split, count) in enumerate(zip(("train", "val"), counts, strict=True)):
            if count:
                rngs = (default_rng([seed, chapter, index]) for index in range(count))
                _write_split(temporary, split, info, (draw_scene(rng, sprites, size, objects) for rng in rngs))
        if folder.exists():
            shutil.rmtree(folder)
    return Path(root)


def _sample_in(root: Path) -> dict | None:
    """The `info` of the sample that lies in `root`, None where nothing does. Raises InputError for anything else."""
    if not root.is_dir():
        if root.exists():
            raise InputError(f"{root}: is a file: give a folder for the sample")
        return None
    files, known, info = {path for path in root.rglob("*") if not path.is_dir()}, set(), None
    for path in root.glob("annotations/instances_*.json"):
        try:
            content = json.loads(path.read_text())
            if content["info"]["description"] == DESCRIPTION:
                split = path.stem.removeprefix("instances_")
                known |= {path} | {root / split / image["file_name"] for image in content["images"]}
                info = content["info"]
        except (ValueError, KeyError, TypeError, OSError):
            continue  # somebody else's, so that it counts as foreign
    if foreign := files - known:
        raise InputError(f"{root}: holds {min(foreign).relative_to(root)}, no part of a sample: give an empty folder")
    return info if files == known else {}  # incomplete: to be drawn again


def _write_split(root: Path, split: str, info: dict, scenes: Iterable[Scene]) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number, scene in enumerate(scenes, start=1):
        name = f"{number:06}.jpg"
        height, width = scene.image.shape[:2]
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for (x1, y1, x2, y2), label, mask in zip(scene.boxes.tolist(), scene.labels, scene.masks, strict=True):
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": CATEGORY_IDS[label - 1]}
            box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": int(mask.sum()), "iscrowd": 0}
            annotations.append(annotation | box)
        jpeg = cv2.imencode(".jpg", scene.image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])[1]
        (root / split / name).write_bytes(jpeg.tobytes())
    categories = [{"id": number, "name": name} for number, name in zip(CATEGORY_IDS, CLASSES, strict=True)]
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
