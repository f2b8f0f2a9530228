"""How fast `odutils` is against the article's own code, or a naive version where that is not at hand.

    python benchmarks/run.py

Both run in turns in one process, on one thread, and CPU time is compared: other work on the machine disturbs both
alike. The ratio of a benchmark is the median over its rounds.
"""

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import naive
import torch
from torch import nn

from odutils.anchors import article_grid
from odutils.augmentation import Augment, import_imgaug
from odutils.datasets import CocoDetections
from odutils.files import DATA, replacing
from odutils.inference import Predictor, select
from odutils.losses import DetectionLoss
from odutils.matching import match_iou
from odutils.presets import build
from odutils.recipe import Recipe
from odutils.sample.make import make_sample
from odutils.training import make_learner, make_optimiser
from odutils.video.annotate import annotate_video
from odutils.video.reader import VideoReader
from odutils.video.writer import VideoWriter

HERE = Path(__file__).resolve().parent
ANCHORS, CLASSES, SIZE = 3150, 80, 224


class ArticleCode:
    """The article's functions behind the interface of naive.py: background column, boxes in -1…1, its data set."""

    def __init__(self, path: Path):
        import_imgaug()
        spec = importlib.util.spec_from_file_location("article", path)
        self.code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.code)

    def loss(self, logits, codes, boxes, labels):
        return self.code.ssd_loss((logits, codes), boxes * 2 - 1, labels)

    def select(self, logits, codes, threshold, _):
        return self.code.nms(codes[None], logits[None], conf_thresh=threshold)

    def Examples(self, dataset):
        examples = object.__new__(self.code.CocoDataset)
        examples.root, examples.coco, examples.ids = dataset.root, dataset.coco, dataset.ids
        examples.transforms, examples.transform = None, self.code.Xfm((SIZE, SIZE), augment=True)
        examples._load_categories()
        return examples


def compare(baseline, ours, rounds: int, each: int = 1) -> dict:
    """Milliseconds of CPU time of both, each run `rounds` times in turns; `each`: things done in one run."""
    baseline(), ours()
    times = []
    for _ in range(rounds):
        pair = []
        for function in (baseline, ours):
            start = time.process_time()
            function()
            pair.append((time.process_time() - start) * 1e3 / each)
        times.append(pair)
    ratios = [a / b for a, b in times]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    spread = [round(ratio, 2) for ratio in (min(ratios), max(ratios))]
    return dict(zip(("baseline_ms", "ours_ms"), medians, strict=True), ratio=statistics.median(ratios), spread=spread)


def random_objects(images: int, most: int, seed: int = 0):
    """Boxes (N, M, 4) and labels (N, M) of 1 to `most` objects an image, as many small as large."""
    chance = torch.Generator().manual_seed(seed)
    size = 0.05 + 0.6 * torch.rand(images, most, 2, generator=chance) ** 2
    corner = torch.rand(images, most, 2, generator=chance) * (1 - size)
    labels = torch.randint(1, CLASSES + 1, (images, most), generator=chance)
    padding = torch.arange(most) >= torch.randint(1, most + 1, (images, 1), generator=chance)
    return torch.cat([corner, corner + size], dim=-1).masked_fill(padding[..., None], 0), labels.masked_fill(padding, 0)


def loss(args, baseline) -> dict:
    """Loss of the preset `article`, forward and backward, batch 32, up to 15 objects an image."""
    boxes, labels = random_objects(32, 15)
    logits, codes = torch.randn(32, ANCHORS, CLASSES + 1) - 3, torch.randn(32, ANCHORS, 4) / 2
    ours, known = DetectionLoss(article_grid(), "article"), torch.ones(32, CLASSES, dtype=torch.bool)
    columns = slice(0 if isinstance(baseline, ArticleCode) else 1, None)  # the background's is the article's alone
    theirs = [logits[..., columns].clone().requires_grad_(), codes.clone().requires_grad_()]
    mine = [logits[..., 1:].clone().requires_grad_(), codes.clone().requires_grad_()]

    def run(predictions, function):
        for prediction in predictions:
            prediction.grad = None
        function().backward()

    return compare(
        lambda: run(theirs, lambda: baseline.loss(*theirs, boxes, labels)),
        lambda: run(mine, lambda: ours(mine, boxes, labels, known)),
        rounds=15,
    )


def loader(args, baseline) -> dict:
    """One augmented image, from the file to the squashed 224 px input."""
    dataset = CocoDetections(args.data, args.split, SIZE, squash=True, augment=Augment(SIZE, squash=True))
    indices = [i for i in range(len(dataset)) if dataset.coco.imgToAnns[dataset.ids[i]]]  # the article drops the others
    indices = indices[:: max(1, len(indices) // 100)][:100]
    examples = baseline.Examples(dataset)
    return compare(
        lambda: [examples[i] for i in indices], lambda: [dataset[0, i] for i in indices], rounds=7, each=len(indices)
    )


def decoding(args, baseline) -> dict:
    """One augmented image, 320 px letterboxed, against decoding its JPEG alone, which no loader can do without."""
    dataset = CocoDetections(args.data, args.split, 320, augment=Augment(320))
    indices = range(0, len(dataset), max(1, len(dataset) // 100))[:100]
    files = [str(dataset.files[dataset.ids[i]]) for i in indices]
    return compare(
        lambda: [cv2.imread(file) for file in files],
        lambda: [dataset[0, i] for i in indices],
        rounds=9,
        each=len(files),
    )


def video(args, baseline) -> dict:
    """A frame of data/clip.mp4 with its boxes drawn, 640 × 272 px, against decoding and encoding it alone."""
    clip, frames, out = DATA / "clip.mp4", 48, Path(args.scratch) / "video.mp4"
    predictor = Predictor.from_weights(device="cpu")

    def copy():
        with VideoReader(clip, frames) as reader, VideoWriter(out, reader) as writer:
            for frame, sound in reader:
                writer.write(frame, sound)
            writer.finish()

    def annotate():
        annotate_video(clip, out, predictor, limit=frames, progress=False)

    return compare(copy, annotate, rounds=5, each=frames)


def inference(args, baseline) -> dict:
    """Decoding and suppression of one image's 3,150 predictions: noise, and answers around eight objects."""
    boxes, labels = random_objects(1, 8, seed=1)
    labels = torch.where(labels > 0, labels, 1)
    match = match_iou(article_grid(), boxes, labels, threshold=0.4)[0]
    logits, codes = torch.randn(ANCHORS, CLASSES + 1) - 5, torch.randn(ANCHORS, 4) / 2
    found = match >= 0
    logits[found, labels[0, match[found]]] = torch.randn(int(found.sum()))
    theirs = logits if isinstance(baseline, ArticleCode) else logits[:, 1:]
    mine, grid = logits[:, 1:].contiguous(), article_grid()
    options = dict(threshold=0.22, iou_threshold=0.2, class_agnostic=False)
    with torch.inference_mode():
        return compare(
            lambda: [baseline.select(theirs, codes, 0.22, 0.2) for _ in range(10)],
            lambda: [select(mine, codes, grid, **options) for _ in range(10)],
            rounds=25,
            each=10,
        )


def training(args, baseline) -> dict:
    """A step of `pyramid` with loss and callbacks, against network, backward and fused AdamW; batch 16, 256 px."""
    detector, recipe, steps = build("pyramid"), Recipe(epochs=1), 3
    boxes, labels = random_objects(16, 15)
    batch = (torch.randint(0, 256, (16, 3, 256, 256), dtype=torch.uint8), boxes, labels, torch.ones(16, CLASSES) > 0)
    dls = SimpleNamespace(train=[batch] * steps, valid=[])
    learn = make_learner(detector, dls, recipe, DetectionLoss(detector.grid(256, 256)))
    learn.fit(1, valid=False)  # freezes what our training freezes, for both
    optimiser = make_optimiser(detector, recipe)

    def network_alone():
        detector.train()
        for module in detector.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        for _ in range(steps):
            logits, codes = detector(batch[0])
            (logits.mean() + codes.mean()).backward()
            optimiser.step()
            optimiser.zero_grad()

    return compare(network_alone, lambda: learn.fit(1, valid=False), rounds=5, each=steps)


BENCHMARKS = {  # aims: ours must be so many times as fast; below 1, ours may take so many times the time
    "loss": (loss, 2.0),
    "loader": (loader, 2.3),
    "inference": (inference, 2.7),
    "training": (training, 1 / 1.05),
    "decoding": (decoding, 1 / 1.6),
    "video": (video, None),
}
AGAINST = {"training": "network alone", "decoding": "decoding alone", "video": "decoding and encoding alone"}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", default=list(BENCHMARKS), help=f"some of {', '.join(BENCHMARKS)}; default: all"
    )
    parser.add_argument("--article", type=Path, default=HERE.parents[1] / "shared" / "article" / "article.py")
    parser.add_argument("--data", help="a folder in COCO's layout for the loader; default: a drawn sample")
    parser.add_argument("--split", default="train")
    parser.add_argument("--machine", default="", help="named in the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    torch.manual_seed(0)
    baseline = ArticleCode(args.article) if args.article.is_file() else naive
    with tempfile.TemporaryDirectory() as folder:
        args.scratch = folder
        args.data = args.data or make_sample(Path(folder) / "sample", images=(100, 1))
        print("| benchmark | baseline, ms | odutils, ms | ratio (smallest … largest) | aim |\n|---|---|---|---|---|")
        for name in args.names:
            function, aim = BENCHMARKS[name]
            result = function(args, baseline)
            low, high = result["spread"]
            times = f"{result['baseline_ms']:.2f} | {result['ours_ms']:.2f}"
            aimed = "" if aim is None else f"{aim:.2f}"
            print(f"| {name} | {times} | {result['ratio']:.2f} ({low} … {high}) | {aimed} |", flush=True)
            against = AGAINST.get(name, "article" if baseline is not naive else "naive")
            result |= {"what": function.__doc__, "baseline": against, "aim": aim, "machine": args.machine}
            with replacing(HERE / "results" / f"{name}.json") as path:
                path.write_text(json.dumps(result | {"torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    main()
