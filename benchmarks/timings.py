"""The benchmarks of run.py: each compares something of `odutils` with a baseline, in turns.

All take the arguments of the command line (with `device` and `clock`) and the baseline, naive.py or ArticleCode.
"""

from pathlib import Path
from types import SimpleNamespace

import cv2
import torch
from article_code import SIZE, ArticleCode
from measuring import CLASSES, TrainingSteps, compare, operations_of_a_step, random_objects

from odutils.anchors import article_grid
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections, EpochSampler, make_loader
from odutils.files import DATA
from odutils.images import input_shape, list_images, read_image
from odutils.inference import Predictor
from odutils.losses import DetectionLoss
from odutils.matching import match_iou
from odutils.presets import build
from odutils.processes import default_workers
from odutils.recipe import Recipe
from odutils.selection import select
from odutils.training import make_learner
from odutils.video.annotate import annotate_video
from odutils.video.reader import VideoReader
from odutils.video.writer import VideoWriter

ANCHORS = len(article_grid())


def loss(args, baseline) -> dict:
    """Loss of the preset `article`, forward and backward, batch 32, up to 15 objects an image."""
    images = 2 if args.small else 32
    boxes, labels = (tensor.to(args.device) for tensor in random_objects(images, 15))
    logits = (torch.randn(images, ANCHORS, CLASSES + 1) - 3).to(args.device)
    codes = (torch.randn(images, ANCHORS, 4) / 2).to(args.device)
    known = torch.ones(images, CLASSES, dtype=torch.bool, device=args.device)
    ours = DetectionLoss(article_grid(), "article").to(args.device)
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
        rounds=1 if args.small else 15,
        clock=args.clock,
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
    """Decoding and suppression of one image's 3,150 predictions: noise, and hits around eight objects."""
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
            rounds=1 if args.small else 25,
            each=10,
        )


def training(args, baseline, batch_size: int = 16, size: int = 256) -> dict:
    """A step of `pyramid` with loss and callbacks, against network, backward and fused AdamW; batch 16, 256 px."""
    if args.small:
        batch_size, size = 2, 64
    count = 1 if args.small else 3 if args.device.type == "cpu" else 20
    steps = TrainingSteps(batch_size, size, args.device, count)
    rounds = 1 if args.small else 5
    return compare(steps.network_alone, steps.train, rounds=rounds, each=count, clock=args.clock)


def large_training(args, baseline) -> dict:
    """A step of `pyramid` with loss and callbacks, against network, backward and fused AdamW; batch 64, 384 px."""
    return training(args, baseline, batch_size=64, size=384)


def operations(args, baseline) -> dict:
    """Operations that PyTorch hands to the device for a step of `pyramid`, against those of its network alone."""
    alone, step = operations_of_a_step()
    ratio = alone / step
    return dict(baseline_operations=alone, ours_operations=step, ratio=ratio, spread=[round(ratio, 2)] * 2)


def prediction(args, baseline, images: int) -> dict:
    """An image from its pixels in memory to its detections, against the network alone."""
    images = min(images, 2) if args.small else images
    predictor = Predictor.from_weights(device=args.device)
    image = read_image(list_images(DATA / "photos")[0])
    height, width = input_shape(*image.shape[:2], predictor.size)
    fitted = torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, device=args.device)
    with torch.inference_mode():
        return compare(
            lambda: predictor.detector(fitted),
            lambda: predictor.batch([image] * images),
            rounds=1 if args.small else 15,
            each=images,
            clock=args.clock,
        )


def training_with_loader(args, baseline) -> dict:
    """An image of a training of `pyramid`, loading included, against loading alone; batch 64, 384 px."""
    batch_size, size = (4, 64) if args.small else (64, 384)
    dataset = CocoDetections(args.data, args.split, size, augment=Augment(size))
    sampler = EpochSampler(dataset)
    workers = 0 if args.small else default_workers()
    loader = make_loader(dataset, batch_size, sampler, workers, pin_memory=args.device.type == "cuda")
    detector = build("pyramid", dataset.classes)
    criterion = DetectionLoss(detector.grid(size, size))
    dls = SimpleNamespace(train=loader, valid=[])
    learn = make_learner(detector, dls, Recipe(epochs=1), criterion, args.device)
    images = len(loader) * batch_size

    def load():
        for _ in loader:
            pass

    rounds = 1 if args.small else 5
    result = compare(load, lambda: learn.fit(1, valid=False), rounds=rounds, each=images, clock=args.clock)
    return result | {"images_per_second": 1e3 / result["ours_ms"], "workers": workers}
