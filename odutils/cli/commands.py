"""What the commands do that have a detector. Heavy packages are imported where they are used: `--help` is instant.

Every function takes the parsed arguments, prints what was found, and returns the exit code (see `__main__.py`).
"""

import json
import sys
from argparse import Namespace
from contextlib import ExitStack, closing, nullcontext
from pathlib import Path

from odutils.cli.inputs import (
    bars_on_terminals_only,
    complain,
    find_images,
    find_split,
    load_predictor,
    name_targets,
    names_below,
)
from odutils.errors import InputError, plural
from odutils.recipe import ARTICLE_SIZE, Recipe

TRAINING_SPLITS = ("train", "train2017")  # what a split is called where the user does not say
VALIDATION_SPLITS = ("val", "val2017", "valid", "dev")


def detect(args: Namespace) -> int:
    from odutils.ahead import map_ahead
    from odutils.coco.label_studio import to_label_studio
    from odutils.coco.results import object_rows, object_titles, to_coco
    from odutils.drawing import draw_detections, write_image
    from odutils.files import replacing, writing
    from odutils.images import read_image
    from odutils.presets import DEFAULT_WEIGHTS
    from odutils.progress import bar

    def read(path: Path):
        try:
            return read_image(path)
        except InputError as error:
            return error

    images, code = find_images(args.paths, args.recursive)
    targets = name_targets(images, Path(args.out))
    with writing(Path(args.out)):  # a place that refuses says so before the work, not after it
        Path(args.out).mkdir(parents=True, exist_ok=True)
    options = {name: getattr(args, name) for name in ("threshold", "iou_threshold", "class_agnostic", "max_detections")}
    width, found = max(len(str(path)) for path in images), []
    below, folder = names_below(args.paths, images)
    names = dict(zip(images, below, strict=True))
    with (
        ExitStack() as written,
        closing(map_ahead(read, images, size=4)) as contents,
        bar(total=len(images), unit="images") as shown,
    ):
        json_path, tasks_path = (
            written.enter_context(replacing(path)) if path else None for path in (args.json, args.label_studio)
        )
        predictor = load_predictor(args)
        shown.write(object_titles(predictor.classes, width))
        for path, target, image in zip(images, targets, contents, strict=True):
            if isinstance(image, InputError):
                shown.clear()
                complain(image)
                code = 1
            else:
                detections = predictor(image, progress=True, **options)
                write_image(target, draw_detections(image, detections, predictor.classes))
                shown.write(object_rows(path, detections, predictor.classes, width))
                found.append((names[path], image.shape, detections))
            shown.update()
            sys.stdout.flush()
        if json_path:
            json_path.write_text(json.dumps(to_coco(found, predictor.classes)))
        if tasks_path:
            version = Path(args.weights or DEFAULT_WEIGHTS).name
            tasks_path.write_text(json.dumps(to_label_studio(found, predictor.classes, version, folder)))
    print(summary(found, len(images), args.out, predictor.threshold if args.threshold is None else args.threshold))
    return code


def summary(found: list, images: int, out: str, threshold: float) -> str:
    """The last line of `detect`: what was written, and what to try where no object was found."""
    objects = sum(len(detections.labels) for _, _, detections in found)
    written = f"{len(found)} of {images} images" if len(found) < images else plural(images, "image")
    if objects or not found:
        return f"{written} written to {out}, {plural(objects, 'object')}"
    lower = round(0.6 * threshold, 2)
    advice = f"; try --threshold {lower:g}" if lower >= 0.05 else ""
    return f"{written} written to {out}, no object found above {threshold:g}{advice}"


def video(args: Namespace) -> int:
    from odutils.video.annotate import annotate_video
    from odutils.video.reader import VideoReader

    target = Path(args.out or Path("runs/video", Path(args.source).stem + ".mp4"))
    with VideoReader(args.source):  # what is no video says so before anything is loaded
        predictor = load_predictor(args)
    report = annotate_video(
        args.source, target, predictor, batch_size=args.batch_size, threshold=args.threshold, limit=args.limit
    )
    print(f"{target}: {report}")
    return 0


@bars_on_terminals_only()
def train(args: Namespace) -> int:
    train_split = find_split(args.data, args.train_split, TRAINING_SPLITS)
    valid_split = find_split(args.data, args.valid_split, VALIDATION_SPLITS)
    same = ("preset", "epochs", "stop_after", "patience", "batch_size", "lr", "backbone_lr", "weight_decay", "warm_up")
    same += ("finest_stride", "balance", "mosaic", "ema", "seed", "freeze_backbone")
    switched_off = dict(pretrained=not args.no_pretrained, crop=not args.no_crop)
    recipe = Recipe(**{name: getattr(args, name) for name in same}, **switched_off)
    recipe.size = args.size or (ARTICLE_SIZE if args.preset == "article" else recipe.size)
    recipe.check()
    options = {name: getattr(args, name) for name in ("weights", "workers", "device", "checkpoint_every")}
    from odutils import training
    from odutils.processes import is_first_process

    checkpoint = Path(args.out, "checkpoint.pt")
    if is_first_process():
        what = "going on from" if checkpoint.exists() else "beginning; when interrupted, the same command goes on from"
        print(f"{train_split} to learn from, {valid_split} to choose the best; {what} {checkpoint}", flush=True)
    try:
        best = training.train(args.data, args.out, recipe, train_split=train_split, valid_split=valid_split, **options)
    except KeyboardInterrupt:
        kept = f"the same command goes on from {checkpoint}" if checkpoint.exists() else "before the first checkpoint"
        raise KeyboardInterrupt(kept) from None
    if is_first_process():
        print(f"best weights: {best}\ntry them: python -m odutils detect IMAGE --weights {best}")
    return 0


def evaluate(args: Namespace) -> int:
    if args.results and (args.tiles != 1 or args.size):
        raise InputError("--results are scored as they are: leave out --tiles and --size")
    split = find_split(args.data, args.split, VALIDATION_SPLITS)
    from odutils.coco.results import doubt_about, read_results, score_table
    from odutils.datasets import CocoDetections
    from odutils.evaluation import predict, score_by_source
    from odutils.files import replacing

    with replacing(args.json) if args.json else nullcontext() as json_path:
        if args.results:
            dataset = CocoDetections(args.data, split)
            results = read_results(args.results, dataset)
            if doubt := doubt_about(results, dataset):
                complain(f"{args.results}: {doubt}")
        else:
            predictor = load_predictor(args)
            dataset = CocoDetections(args.data, split, classes=predictor.classes)
            results = predict(predictor, dataset, progress=True)
        scores = score_by_source(dataset, results)
        print(f"{len(dataset)} images of {args.data}, {split}; AP is COCO's mAP, the mean over IoU 0.50:0.95")
        print(score_table(scores))
        if args.intervals:
            from odutils.bootstrap import describe, measure

            scores["intervals"] = measure(dataset, [results], progress=True)
            print("\n" + describe(scores["intervals"]))
        if json_path:
            json_path.write_text(json.dumps(scores, indent=1))
    return 0


def export(args: Namespace) -> int:
    from odutils import onnx_export
    from odutils.presets import DEFAULT_WEIGHTS, load_detector

    path = onnx_export.export(load_detector(args.weights or DEFAULT_WEIGHTS), args.out)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB\ntry it: python -m odutils detect IMAGE --weights {path}")
    return 0
