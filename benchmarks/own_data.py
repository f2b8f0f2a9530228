"""The longer experiments of notebook 10: fine-tuning on the QR codes of data/qr_codes, three seeds each.

    python benchmarks/own_data.py                      # every run without a result, then experiments.json
    python benchmarks/own_data.py fine_tuned --seeds 0 # one of them; experiments.json is left as it is

All runs train with the same recipe for the same number of steps (but for rounding to whole epochs), on one thread. They
are scored on the validation and on the test set with the weights of the epoch that had the best AP on the validation
set. The runs are kept in runs/own_data and go on after an interruption.
"""

import argparse
import csv
import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # inputs this small gain nothing from a second thread

import cv2
import numpy as np
import torch
from torchvision.ops import box_iou

from odutils.bootstrap import Matches, drawn_weights, intervals
from odutils.coco.splitting import split_dataset
from odutils.datasets import CocoDetections
from odutils.evaluation import predict, to_results
from odutils.files import DATA, RUNS, replacing
from odutils.inference import Predictor
from odutils.recipe import Recipe
from odutils.training import train
from odutils.weights import load_weights

RESULTS = DATA / "qr_codes" / "experiments.json"  # beside the images, so that the notebook finds it in a wheel, too
HERE = RUNS / "own_data"
WEIGHTS = DATA / "weights" / "pyramid.safetensors"
RECIPE = Recipe(size=128, batch_size=8, epochs=16, lr=1.5e-3, backbone_lr=2e-4, warm_up=20, balance=0, ema=0.98)
SEEDS, DRAWS = (0, 1, 2), 1000
KEPT = 20  # detections an image that count here; an image has one object

# name -> what differs from fine-tuning the shipped weights on all images of the split by scene
EXPERIMENTS = {
    "fine_tuned": {},
    "frozen": {"recipe": {"freeze_backbone": True}},
    "imagenet": {"weights": None},
    "random_split": {"folder": "by_image"},
    "images_10": {"images": 10},
    "images_25": {"images": 25},
    "images_50": {"images": 50},
    "loose_labels": {"labels": "loose"},
    "relabelled": {"labels": "relabelled"},
}
MARGIN = 0.12  # of the box's width and height, on each side: about what the light margin around a code takes
RELABELLED = 20  # labels that are looked at again: those with which the detector agrees least


def prepare() -> None:
    """The images, split by scene and at random, with the same test set beside both."""
    source = DATA / "qr_codes"
    for name, by in (("by_scene", "scene"), ("by_image", "image")):
        if not (HERE / name / "annotations" / "instances_test.json").exists():
            shutil.rmtree(HERE / name, ignore_errors=True)
            split_dataset(source, "all", HERE / name, {"train": 0.75, "val": 0.25}, by)
            shutil.copytree(source / "test", HERE / name / "test")
            shutil.copy(source / "annotations" / "instances_test.json", HERE / name / "annotations")


def training_split(folder: Path, seed: int, images: int | None = None, labels: str = "") -> str:
    """The name of the split to train on: "train", or one made of it with fewer images or with other labels."""
    if not images and not labels:
        return "train"
    name = f"train_{images or labels}_{seed}"
    content = json.loads((folder / "annotations" / "instances_train.json").read_text())
    rng = np.random.default_rng(seed)
    if images:
        content["images"] = [content["images"][i] for i in sorted(rng.permutation(len(content["images"]))[:images])]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
    else:
        loose = rng.permutation(len(content["annotations"])) < len(content["annotations"]) // 2  # (M,) every second
        again = set()
        if labels == "relabelled":
            run("loose_labels", seed)
            again = doubtful(folder, seed)
        for one, is_loose in zip(content["annotations"], loose, strict=True):
            if is_loose and one["image_id"] not in again:
                x, y, w, h = one["bbox"]
                one["bbox"] = [x - MARGIN * w, y - MARGIN * h, (1 + 2 * MARGIN) * w, (1 + 2 * MARGIN) * h]
                one["loose"] = True
    if not (folder / name).exists():
        (folder / name).symlink_to((folder / "train").resolve(), target_is_directory=True)
    (folder / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))
    return name


def doubtful(folder: Path, seed: int) -> set[int]:
    """Image ids of the labels with which the detector that was trained on them agrees least."""
    dataset = CocoDetections(folder, f"train_loose_{seed}")
    predictor = Predictor.from_weights(HERE / f"loose_labels_{seed}" / "best.safetensors")
    best = {}
    for result in predict(predictor, dataset):
        if result["score"] > best.get(result["image_id"], {"score": 0})["score"]:
            best[result["image_id"]] = result
    agreement = {}
    for one in dataset.coco.dataset["annotations"]:
        agreement[one["image_id"]] = iou(one["bbox"], best[one["image_id"]]["bbox"]) if one["image_id"] in best else 0
    return set(sorted(agreement, key=agreement.get)[:RELABELLED])


def iou(one: list[float], other: list[float]) -> float:
    """IoU of two boxes [x, y, w, h]."""
    corners = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (one, other)])
    return float(box_iou(corners[:1], corners[1:]))


def run(name: str, seed: int) -> dict:
    """Train one experiment, unless it has a result; returns its curve, and its detections on val and test."""
    result = HERE / f"{name}_{seed}.json"
    if result.exists():
        return json.loads(result.read_text())
    how = EXPERIMENTS[name]
    folder, out = HERE / how.get("folder", "by_scene"), HERE / f"{name}_{seed}"
    split = training_split(folder, seed, how.get("images"), how.get("labels", ""))
    images = len(CocoDetections(folder, split))
    all_images = len(CocoDetections(HERE / "by_scene", "train"))
    epochs = round(RECIPE.epochs * (all_images // RECIPE.batch_size) / (images // RECIPE.batch_size))
    recipe = replace(RECIPE, seed=seed, epochs=epochs, **how.get("recipe", {}))
    options = {"weights": how.get("weights", WEIGHTS), "workers": 0, "device": "cpu", "progress": False}
    best = train(folder, out, recipe, split, **options)
    predictor = Predictor.from_weights(best)
    with open(out / "losses.csv", newline="") as file:
        names = ("epoch", "train_loss", "valid_loss", "AP", "AP50")
        curve = [{key: round(float(row[key]), 4) for key in names} for row in csv.DictReader(file)]
    made = {"name": name, "seed": seed, "images": images, "epochs": epochs, "curve": curve}
    made["best_epoch"] = load_weights(best)[1]["epoch"]
    made["detections"] = {part: kept(predict(predictor, CocoDetections(folder, part))) for part in ("val", "test")}
    with replacing(result) as temporary:
        temporary.write_text(json.dumps(made))
    return made


def kept(results: list[dict]) -> list[dict]:
    """The detections with the highest scores of each image, rounded: a tenth of a pixel is enough."""
    of_image: dict[int, list[dict]] = {}
    for result in sorted(results, key=lambda one: -one["score"]):
        of_image.setdefault(result["image_id"], []).append(result)
    some = [one for found in of_image.values() for one in found[:KEPT]]
    return [one | {"bbox": [round(v, 1) for v in one["bbox"]], "score": round(one["score"], 4)} for one in some]


def opencv(part: str) -> list[dict]:
    """What OpenCV's QR code detector finds: corners computed by rules, nothing learned, and no confidence."""
    dataset, detector, results = CocoDetections(HERE / "by_scene", part), cv2.QRCodeDetector(), []
    for index, image_id in enumerate(dataset.ids):
        found, corners = detector.detectMulti(cv2.cvtColor(dataset.image(index), cv2.COLOR_RGB2GRAY))
        for quadrilateral in corners if found else ():
            x, y, width, height = *quadrilateral.min(axis=0), *np.ptp(quadrilateral, axis=0)
            box = [round(float(value), 1) for value in (x, y, width, height)]
            results.append({"image_id": image_id, "category_id": 1, "bbox": box, "score": 1.0})
    return results


def shipped(part: str) -> list[dict]:
    """The shipped weights, which do not know the class: their detections of any class, taken for QR codes."""
    dataset, predictor = CocoDetections(HERE / "by_scene", part), Predictor.from_weights(WEIGHTS)
    results = []
    for index in range(len(dataset)):
        found = predictor(dataset.image(index), threshold=0.05)
        results += to_results(dataset, index, found._replace(labels=np.ones_like(found.labels)))
    return kept(results)


def score(runs: dict[str, list[dict]]) -> dict:
    """Means over the seeds, with 95 % intervals from a bootstrap over the images; differences are of the same draws.

    On "val" only experiments with the validation set of the split by scene are scored.
    Returns {"val" | "test": {name: {"AP": [mean, half], "AP50": …, "seeds": [AP of each]}}}, and for every name but
    the first the difference of its AP to the first one's: "difference": [mean, half].
    """
    report = {}
    for part in ("val", "test"):
        dataset = CocoDetections(HERE / "by_scene", part)
        weights, drawn = [np.ones(len(dataset)), *drawn_weights(len(dataset), DRAWS)], {}
        for name, made in runs.items():
            if part == "test" or "folder" not in EXPERIMENTS.get(name, {}):
                seeds = [Matches(dataset, one["detections"][part], dataset.ids) for one in made]
                drawn[name] = np.array([[seed.score(w) for seed in seeds] for w in weights])  # (1 + draws, seeds, 2)
        first, report[part] = next(iter(drawn)), {}
        for name, values in drawn.items():
            made = intervals(np.stack([values.mean(axis=1), drawn[first].mean(axis=1)], axis=1))  # of both, then of -
            row = {"AP": rounded(made["AP"][0]), "AP50": rounded(made["AP50"][0]), "seeds": rounded(values[0, :, 0])}
            if name != first:
                row["difference"] = rounded(made["AP"][2])
            report[part][name] = row
    return report


def rounded(values) -> list[float]:
    return [round(float(value), 4) for value in values]


def own_validation(runs: list[dict]) -> list[float]:
    """AP on the validation set that the split itself made, for each seed: the value that a user would see."""
    return [run["curve"][run["best_epoch"]]["AP"] for run in runs]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="EXPERIMENT", help=f"(default: all) {', '.join(EXPERIMENTS)}")
    parser.add_argument("--seeds", nargs="*", type=int, default=SEEDS)
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(EXPERIMENTS)):
        parser.error(f"no such experiment: {', '.join(unknown)}")
    prepare()
    runs = {}
    for name in args.names or EXPERIMENTS:
        runs[name] = [run(name, seed) for seed in args.seeds]
        print(f"{name}: AP on its validation set", *own_validation(runs[name]), flush=True)
    if args.names or tuple(args.seeds) != SEEDS:
        return
    runs["shipped"] = [{"detections": {part: shipped(part) for part in ("val", "test")}}]
    runs["opencv"] = [{"detections": {part: opencv(part) for part in ("val", "test")}}]
    trained = {name: made for name, made in runs.items() if name in EXPERIMENTS}
    report = {
        "recipe": asdict(RECIPE),
        "scores": score(runs),
        "own_validation": {name: own_validation(made) for name, made in trained.items()},
        "curves": {name: [one["curve"] for one in made] for name, made in trained.items()},
    }
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
