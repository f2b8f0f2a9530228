"""Small objects: what the shipped detector loses with an object's size, and what a larger input or tiles change.

    python -m odutils export --out model.onnx
    python benchmarks/small_objects.py --data FOLDER --weights model.onnx     # every part without a result

FOLDER is in COCO's layout with the splits dev and dev_large (benchmarks/rebuild_photos.py makes it). Everything runs on
one thread; milliseconds are CPU time of that thread, so that other work on the machine matters little. Results go to
data/experiments/small_objects.json, where notebook 09 reads them. Detectors that are trained for small objects are
compared by remedies.py.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import cv2
import numpy as np
import torch

from odutils.bootstrap import drawn_weights
from odutils.coco.reading import ids_by_source
from odutils.datasets import CocoDetections
from odutils.evaluation import match_results, predict, score
from odutils.files import DATA, RUNS, replacing
from odutils.images import fit, place
from odutils.inference import Predictor

RESULTS = DATA / "experiments" / "small_objects.json"  # beside the data, so that a notebook finds it in a wheel, too
HERE = RUNS / "small_objects"
SIZES = (0, 8, 16, 24, 32, 48, 96, 192, 416)  # px of the network's input: bounds of the square root of a box's area
SMALL = 32**2  # px² of the image: below it, COCO calls an object small
TIMED = 20  # images that are timed one by one
SIDE, CELL = 4, 320  # of a contact sheet: images a side, px of each
KEPT = 1000  # detections of a contact sheet that are scored: many sheets have more objects than the usual 100
DRAWS = 1000


def measure(predictor: Predictor, dataset: CocoDetections) -> dict:
    """COCO's metrics; recall of small objects, found at all and shown; false positives that are shown; milliseconds.

    Shown is what `detect` draws: above the default threshold, after class-agnostic non-maximum suppression.
    """
    results = predict(predictor, dataset)
    shown = predict(predictor, dataset, class_agnostic=True)  # as `detect` draws them
    shown = [result for result in shown if result["score"] > predictor.threshold]
    metrics = {name: round(value, 4) for name, value in score(dataset, results).items() if name != "by_class"}
    recalls = {"recall_small": small_recall(dataset, results), "recall_small_shown": small_recall(dataset, shown)}
    false_positives = int((~match_results(dataset, shown).true_positive).sum()) / len(dataset)
    milliseconds = time_one_by_one(predictor, [dataset.image(i) for i in range(min(TIMED, len(dataset)))])
    counts = {"images": len(dataset), "false_positives_an_image": round(false_positives, 3)}
    return metrics | recalls | counts | {"ms": milliseconds}


def small_recall(dataset: CocoDetections, results: list[dict]) -> list[int]:
    """[small objects that are found, small objects], at IoU 0.5."""
    matched = match_results(dataset, results)
    small = np.array([one["area"] < SMALL for one in matched.objects], bool)
    return [int(matched.found[small].sum()), int(small.sum())]


def time_one_by_one(predictor: Predictor, images: list[np.ndarray]) -> float:
    """CPU milliseconds an image, resizing and non-maximum suppression included."""
    predictor(images[0])
    started = time.process_time()
    for image in images:
        predictor(image)
    return round(1e3 * (time.process_time() - started) / len(images), 1)


def recall_by_size(make: Callable, data: Path) -> dict:
    """Recall at IoU 0.5 against the size of the objects in the input, with 95 % intervals (bootstrap over images)."""
    predictor = make()
    dataset = CocoDetections(data, "dev_large", classes=predictor.classes)
    results, rows = predict(predictor, dataset), {}
    scales = np.array([place(*dataset.shape(i)[:2], predictor.size).scale_x for i in range(len(dataset))])
    number = {image_id: index for index, image_id in enumerate(dataset.ids)}
    draws = np.stack(list(drawn_weights(len(dataset), DRAWS)))  # (draws, images)
    for name, threshold in (("all", 0.0), ("shown", predictor.threshold)):
        matched = match_results(dataset, [result for result in results if result["score"] > threshold])
        image = np.array([number[one["image_id"]] for one in matched.objects])  # (G,)
        area = np.array([one["bbox"][2] * one["bbox"][3] for one in matched.objects])
        size = np.sqrt(area) * scales[image]
        rows[name] = []
        for low, high in zip(SIZES, SIZES[1:], strict=False):
            inside = (size >= low) & (size < high)
            objects = np.bincount(image[inside], minlength=len(dataset))  # (images,)
            found = np.bincount(image[inside & matched.found], minlength=len(dataset))
            drawn = (draws @ found) / np.maximum(1, draws @ objects)
            recall, half = found.sum() / objects.sum(), 1.96 * drawn.std()
            rows[name].append([low, high, int(objects.sum()), round(float(recall), 4), round(float(half), 4)])
    return {
        "columns": ["from px", "to px", "objects", "recall", "half of the interval"],
        "threshold": predictor.threshold,
    } | rows


def larger_input(make: Callable, data: Path) -> dict:
    """Whole images, enlarged."""
    dataset = CocoDetections(data, "dev", classes=make().classes)
    return {str(size): measure(make(size=size), dataset) for size in (416, 640, 832)}


def tiles(make: Callable, data: Path) -> dict:
    """Tiles of images that are hardly larger than the input: they are enlarged."""
    dataset = CocoDetections(data, "dev", classes=make().classes)
    return {str(number): measure(make(tiles=number), dataset) for number in (1, 2)}


def sheets(make: Callable, data: Path) -> dict:
    """Contact sheets of real photographs: every object is small in them, and none is new."""
    draw_sheets(data, HERE / "sheets")
    dataset = CocoDetections(HERE / "sheets", "sheets", classes=make().classes)
    ways = {"416": {}, "size 832": {"size": 832}, "size 1280": {"size": 1280}}
    ways |= {f"tiles {number}": {"tiles": number} for number in (2, 3, 4)}  # "auto" is 4
    return {name: measure(keep_many(make(**how)), dataset) for name, how in ways.items()}


def keep_many(predictor: Predictor) -> Predictor:
    """Let a predictor return KEPT detections an image."""
    predictor.batch = partial(predictor.batch, max_detections=KEPT, top_k=4 * KEPT)
    return predictor


def draw_sheets(data: Path, folder: Path) -> None:
    """SIDE × SIDE images of `dev` in each sheet, with their labels; a sheet's images come from one source."""
    dataset = CocoDetections(data, "dev", CELL)
    (folder / "sheets").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    content = dict(dataset.coco.dataset, images=[], annotations=[])
    number = {image_id: index for index, image_id in enumerate(dataset.ids)}
    for source, ids in ids_by_source(dataset.coco.loadImgs(dataset.ids)).items():
        for first in range(0, len(ids) - SIDE**2 + 1, SIDE**2):
            sheet, name = np.empty((SIDE * CELL, SIDE * CELL, 3), np.uint8), f"{len(content['images']) + 1:03}.jpg"
            about = {"id": len(content["images"]) + 1, "file_name": name, "source": source}
            content["images"].append(about | {"width": SIDE * CELL, "height": SIDE * CELL})
            for place_in_sheet, image_id in enumerate(ids[first : first + SIDE**2]):
                top, left = (CELL * part for part in divmod(place_in_sheet, SIDE))
                cell, placement = fit(dataset.image(number[image_id]), CELL)
                sheet[top : top + CELL, left : left + CELL] = cell
                scale = placement.scale_x
                for one in dataset.coco.imgToAnns[image_id]:
                    x, y, width, height = (scale * value for value in one["bbox"])
                    box = {"bbox": [x + left, y + top, width, height], "area": scale**2 * one["area"]}
                    moved = {"id": len(content["annotations"]) + 1, "image_id": about["id"]} | box
                    content["annotations"].append({**one, **moved, "segmentation": []})
            cv2.imwrite(str(folder / "sheets" / name), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])
    (folder / "annotations" / "instances_sheets.json").write_text(json.dumps(content))


def photos(make: Callable, data: Path) -> dict:
    """The twelve photographs of data/photos at full size, by their labels."""
    dataset = CocoDetections(DATA, "photos", classes=make().classes)
    found = {"416": measure(make(), dataset), "size 832": measure(make(size=832), dataset)}
    return found | {f"tiles {number}": measure(make(tiles=number), dataset) for number in (2, 3, 4, "auto")}


PARTS = {part.__name__: part for part in (photos, sheets, recall_by_size, larger_input, tiles)}


def read_results() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"(default: all) {', '.join(PARTS)}")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="default: the shipped ones, which are slower than exported ones")
    args = parser.parse_args()
    if unknown := sorted(set(args.parts) - set(PARTS)):
        parser.error(f"no such part: {', '.join(unknown)}")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)

    def make(size: int | None = None, tiles: int | str = 1) -> Predictor:
        predictor = Predictor.from_weights(args.weights, "cpu", tiles=tiles)
        predictor.size = size or predictor.size
        return predictor

    for name in args.parts or PARTS:
        if name not in read_results() or args.parts:
            made = PARTS[name](make, args.data)
            content = read_results() | {name: made}  # read again: another process may have written meanwhile
            RESULTS.parent.mkdir(exist_ok=True)
            with replacing(RESULTS) as temporary:
                temporary.write_text(json.dumps(content, indent=1) + "\n")
            print(name, json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
