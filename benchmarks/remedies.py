"""Remedies for small objects, one at a time: detectors of the preset `points`, trained on drawn scenes full of them.

    python benchmarks/remedies.py                       # every run without a result, then remedies.json
    python benchmarks/remedies.py stride_4 --seeds 0    # one of them; remedies.json is left as it is

The scenes are 640 px wide, the input is 192 px: an object that COCO calls small (below 32 × 32 px in the image) has
less than 10 px there. All objects are of one class, so that a few hundred steps suffice. Every run trains for the same
steps on the same images, on one thread, in bfloat16. Results: data/experiments/remedies.json.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from depthwise import use_quick_gradients
from entrants.course import MEAN, STD, use_average
from entrants.ours import LossWithFocal
from scipy.stats import spearmanr
from small_objects import measure
from torch import Tensor, nn
from torchvision.ops import box_iou

from odutils.augmentation import Augment
from odutils.coco.reading import annotation_file
from odutils.datasets import CocoDetections, EpochSampler, make_loader
from odutils.evaluation import predict
from odutils.files import DATA, RUNS, replacing
from odutils.fine import FineBackbone, FineHead
from odutils.inference import Predictor
from odutils.losses import DetectionLoss, Matched
from odutils.model import Detector, LiteBackbone, PyramidHead
from odutils.mosaic import WithMosaic
from odutils.points import PYRAMID_STRIDES, STRIDES_FROM, point_grid
from odutils.precision import MixedPrecision
from odutils.recipe import Recipe
from odutils.sample.make import make_sample
from odutils.settings import Settings
from odutils.training import make_learner

RESULTS = DATA / "experiments" / "remedies.json"
HERE = RUNS / "remedies"
RECIPE = Recipe(preset="points", size=192, batch_size=8, epochs=12, warm_up=30, balance=0, ema=0.99)
IMAGES, WIDTH, OBJECTS = (240, 120), 640, (6, 12)
PASTED, PASTED_SIZE = 6, (20, 32)  # objects that copy-paste adds to an image, and their longer side in its pixels
SEEDS = (0, 1)


# ---- FCOS's score: class times centre-ness


class CentrenessHead(PyramidHead):
    """A fifth output of the box branch says how central a point is in its object (Tian et al. 2019, section 3.3)."""

    def __init__(self, channels_in: tuple[int, ...], classes: int, channels: int = 96):
        super().__init__(channels_in, classes, channels)
        sides, self.box_output = self.box_output, nn.Conv2d(channels, 5, 1)
        with torch.no_grad():
            self.box_output.weight[:4], self.box_output.bias[:4] = sides.weight, sides.bias
            self.box_output.bias[4] = 0

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """As PyramidHead's, but in training box_codes is (N, A, 5); else the scores hold the centre-ness already."""
        logits, codes = super().forward(features)
        if self.training:
            return logits, codes
        score = (logits.sigmoid() * codes[..., 4:].sigmoid()).sqrt()  # torchvision takes the root, too
        return torch.logit(score, eps=1e-6), codes[..., :4]


class LossWithCentreness(LossWithFocal):
    """Focal loss for the class, binary cross-entropy for the centre-ness of the positives."""

    def forward(self, predictions, boxes, labels, known):
        logits, codes = predictions
        self.centreness = codes[..., 4].float()  # (N, A)
        return super().forward((logits, codes[..., :4]), boxes, labels, known)

    def quality_loss(self, logits: Tensor, predicted: Tensor, matched: Matched) -> tuple[Tensor, Tensor]:
        class_loss, box_loss = super().quality_loss(logits, predicted, matched)
        before, after = self.grid.centres - matched.boxes[..., :2], matched.boxes[..., 2:] - self.grid.centres
        ratios = torch.minimum(before, after).clamp(min=0) / torch.maximum(before, after).clamp(min=1e-9)  # (N, A, 2)
        entropy = F.binary_cross_entropy_with_logits(self.centreness, ratios.prod(dim=-1).sqrt(), reduction="none")
        positives = self.divisor(matched.positive.sum())
        return class_loss + torch.where(matched.positive, entropy, 0).sum() / positives, box_loss


# ---- data


def prepare() -> None:
    """The drawn scenes with one class, and their training images once more with small objects pasted into them."""
    if (HERE / "scenes" / "train_pasted").exists():
        return
    make_sample(HERE / "drawn", images=IMAGES, size=WIDTH, objects=OBJECTS, seed=0)
    (HERE / "scenes" / "annotations").mkdir(parents=True, exist_ok=True)
    for split in ("train", "val"):
        content = json.loads(annotation_file(HERE / "drawn", split).read_text())
        content["categories"] = [{"id": 1, "name": "object"}]
        for one in content["annotations"]:
            one["category_id"] = 1
        (HERE / "scenes" / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
        (HERE / "scenes" / split).symlink_to((HERE / "drawn" / split).resolve(), target_is_directory=True)
    paste()


def paste() -> None:
    """Copy-paste (Ghiasi et al. 2021), simply: shrunk rectangles around objects, put where they hide no other one."""
    dataset, rng = CocoDetections(HERE / "scenes", "train"), np.random.default_rng(0)
    content, folder = dataset.coco.dataset, HERE / "scenes" / "train_pasted"
    folder.mkdir()
    crops = []
    for index, image_id in enumerate(dataset.ids):
        image = dataset.image(index)
        for one in dataset.coco.imgToAnns[image_id]:
            x, y, width, height = map(int, one["bbox"])
            crops.append(image[y : y + height, x : x + width])
    for index, image_id in enumerate(dataset.ids):
        image, boxes = dataset.image(index).copy(), torch.from_numpy(dataset.boxes[index])
        for _ in range(PASTED):
            crop = crops[rng.integers(len(crops))]
            scale = rng.uniform(*PASTED_SIZE) / max(crop.shape[:2])
            width, height = (max(4, round(scale * side)) for side in crop.shape[1::-1])
            left, top = rng.integers(image.shape[1] - width), rng.integers(image.shape[0] - height)
            box = torch.tensor([[left, top, left + width, top + height]], dtype=torch.float32)
            if box_iou(box, boxes).max() > 0:
                continue
            image[top : top + height, left : left + width] = cv2.resize(
                crop, (width, height), interpolation=cv2.INTER_AREA
            )
            boxes = torch.cat([boxes, box])
            bbox = [int(left), int(top), width, height]
            one = {"id": len(content["annotations"]) + 1, "image_id": image_id, "category_id": 1, "iscrowd": 0}
            content["annotations"].append(one | {"bbox": bbox, "area": width * height})
        name = dataset.coco.imgs[image_id]["file_name"]
        cv2.imwrite(str(folder / name), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    (HERE / "scenes" / "annotations" / "instances_train_pasted.json").write_text(json.dumps(content))


# ---- runs


def run(
    seed: int,
    recipe: Recipe = RECIPE,
    backbone: type[LiteBackbone] = LiteBackbone,
    head: type[PyramidHead] = PyramidHead,
    strides: tuple[int, ...] = PYRAMID_STRIDES,
    loss: type[DetectionLoss] = DetectionLoss,
    split: str = "train",
    source: Callable = CocoDetections,
) -> Detector:
    """Train one detector."""
    torch.manual_seed(seed)
    recipe = replace(recipe, seed=seed)
    dataset = source(HERE / "scenes", split, recipe.size, augment=Augment(recipe.size, seed=seed))
    settings = Settings("points", dataset.classes, recipe.size, squash=False, finest_stride=strides[0])
    grid = partial(point_grid, strides=strides)
    detector = Detector(backbone(True), head(backbone.channels, 1), grid, MEAN, STD, settings)
    detector.to(memory_format=torch.channels_last)
    use_quick_gradients(detector)
    loader = make_loader(dataset, recipe.batch_size, sampler=EpochSampler(dataset, seed, recipe.balance), workers=0)
    dls, mixed = SimpleNamespace(train=loader, valid=[]), MixedPrecision(torch.bfloat16)
    learn = make_learner(detector, dls, recipe, loss(detector.grid(recipe.size, recipe.size)), "cpu", [mixed])
    learn.cbs = [callback for callback in learn.cbs if callback is mixed or not isinstance(callback, MixedPrecision)]
    learn.fit(recipe.epochs, valid=False)
    use_average(learn)
    return detector.eval()


TRAINED = {  # name -> how it differs from the baseline
    "baseline": {},
    "stride_4": dict(backbone=FineBackbone, head=FineHead, strides=STRIDES_FROM[4]),
    "input_288": dict(recipe=replace(RECIPE, size=288)),
    "mosaic": dict(source=partial(WithMosaic, share=0.5)),
    "copy_paste": dict(split="train_pasted"),
    "centreness": dict(head=CentrenessHead, loss=LossWithCentreness),
}
USED = {"input_384": dict(size=384), "tiles_2": dict(tiles=2), "tiles_3": dict(tiles=3)}  # of the baseline's weights


def agreement(predictor: Predictor, dataset: CocoDetections, least: float = 0.05) -> float:
    """Spearman's rank correlation of a detection's score with the IoU that its box has with the nearest object."""
    scores, overlaps = [], []
    number = {image_id: index for index, image_id in enumerate(dataset.ids)}
    for result in predict(predictor, dataset):
        if result["score"] > least:
            x, y, width, height = result["bbox"]
            boxes = torch.from_numpy(dataset.boxes[number[result["image_id"]]])
            overlaps.append(float(box_iou(torch.tensor([[x, y, x + width, y + height]]), boxes).max()))
            scores.append(result["score"])
    return round(float(spearmanr(scores, overlaps).statistic), 4)


def results_of(name: str, seed: int) -> dict[str, dict]:
    """Train and score one detector, unless that is done; of the baseline, the ways to use it that need no training."""
    path = HERE / f"{name}_{seed}.json"
    if path.exists():
        return json.loads(path.read_text())
    detector, dataset = run(seed, **TRAINED[name]), CocoDetections(HERE / "scenes", "val")
    made = {}
    for used, how in {name: {}, **(USED if name == "baseline" else {})}.items():
        predictor = Predictor(detector, "cpu", tiles=how.get("tiles", 1))
        predictor.size = how.get("size", predictor.size)
        made[used] = measure(predictor, dataset)
        made[used]["parameters"] = sum(parameter.numel() for parameter in detector.parameters())
        if used in ("baseline", "centreness"):
            made[used]["score_against_iou"] = agreement(predictor, dataset)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(made))
    print(name, seed, json.dumps(made), flush=True)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"(default: all) {', '.join(TRAINED)}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    args = parser.parse_args()
    if unknown := sorted(set(args.names) - set(TRAINED)):
        parser.error(f"no such run: {', '.join(unknown)}")
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    prepare()
    runs = {seed: {} for seed in args.seeds}
    for seed in args.seeds:
        for name in args.names or TRAINED:
            runs[seed] |= results_of(name, seed)
    if args.names or set(args.seeds) != set(SEEDS):
        return
    steps = RECIPE.epochs * IMAGES[0] // RECIPE.batch_size
    about = {"seeds": list(SEEDS), "steps": steps, "images": IMAGES, "image_px": WIDTH, "input_px": RECIPE.size}
    content = about | {"results": {name: [runs[seed][name] for seed in SEEDS] for name in runs[SEEDS[0]]}}
    with replacing(RESULTS) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
