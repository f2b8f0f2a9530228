"""What the command line understands: its commands, their options, and an example of each."""

import argparse
from functools import partial

from odutils.cli import commands
from odutils.cli.data_options import add_data_commands
from odutils.cli.parsing import Parser, add_command, add_data, natural, positive, rate, share, tile_count
from odutils.recipe import Recipe
from odutils.settings import FINEST_STRIDES


def make_parser() -> Parser:
    parser = Parser("python -m odutils", description="Finds objects in images and videos, and learns to.")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    add = partial(add_command, subparsers)

    command = add("detect", commands.detect, "draw boxes on images", "detect holiday/ cat.jpg --out found")
    command.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder of images")
    command.add_argument("--recursive", action="store_true", help="take the images of sub-folders, too")
    command.add_argument("--out", default="runs/detect", metavar="FOLDER", help="for the annotated images")
    command.add_argument(
        "--json", metavar="FILE", help="write a COCO annotation file, too; it names images relative to the folder given"
    )
    command.add_argument(
        "--label-studio", metavar="FILE",
        help="write tasks for Label Studio with the boxes as predictions, too; the image NAME of the given FOLDER is "
        "/data/local-files/?d=FOLDER/NAME: start Label Studio with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true and "
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT=the parent folder of FOLDER, and add FOLDER to the project as a "
        "storage of local files",
    )  # fmt: skip
    add_threshold(command)
    add_predictor(command)
    command.add_argument(
        "--iou", type=share, dest="iou_threshold", metavar="0…1",
        help="two boxes of a class that overlap by more are one object (default: 0.5)",
    )  # fmt: skip
    command.add_argument(
        "--class-agnostic", action=argparse.BooleanOptionalAction, default=True,
        help="let boxes of different classes compete, too; scoring wants --no-class-agnostic",
    )  # fmt: skip
    command.add_argument("--max-detections", type=positive, metavar="N", help="in an image (default: 100)")

    command = add("video", commands.video, "draw boxes on a video", "video street.mp4 --out street_boxes.mp4")
    command.add_argument("source", metavar="VIDEO", help="any video that FFmpeg reads")
    command.add_argument("--out", metavar="VIDEO.mp4", help="(default: runs/video/NAME.mp4)")
    add_threshold(command)
    add_predictor(command)
    command.add_argument("--batch-size", type=positive, default=4, metavar="N", help="frames at a time")
    command.add_argument("--limit", type=positive, metavar="N", help="stop after so many frames")

    command = add(
        "train", commands.train, "train a detector; repeat the command to go on after an interruption",
        "train --data coco_2017 --out runs/coco --epochs 12",
    )  # fmt: skip
    add_data(command)
    command.add_argument("--out", default="runs/train", metavar="FOLDER", help="for weights, checkpoint and curves")
    command.add_argument("--train-split", metavar="NAME", help="(default: train or train2017, what is there)")
    command.add_argument("--valid-split", metavar="NAME", help="(default: val, val2017, valid or dev)")
    command.add_argument(
        "--preset",
        choices=("pyramid", "points", "article"),
        default=Recipe.preset,
        help="kind of detector; points: as pyramid, without anchors",
    )
    command.add_argument(
        "--size", type=positive, metavar="PX", help=f"of the input (default: {Recipe.size}; article: 224)"
    )
    command.add_argument(
        "--finest-stride", type=int, choices=FINEST_STRIDES, default=Recipe.finest_stride,
        help="4: one more level in the feature pyramid, for small objects; detection takes about 1.4 times as long",
    )  # fmt: skip
    command.add_argument("--epochs", type=positive, default=Recipe.epochs, metavar="N", help="times each image is seen")
    command.add_argument("--batch-size", type=positive, default=Recipe.batch_size, metavar="N", help="images a step")
    command.add_argument("--lr", type=rate, default=Recipe.lr, metavar="RATE", help="learning rate of the head")
    command.add_argument(
        "--backbone-lr", type=rate, default=Recipe.backbone_lr, metavar="RATE", help="and of the backbone"
    )
    command.add_argument("--mosaic", type=share, default=Recipe.mosaic, metavar="0…1", help="examples of four images")
    command.add_argument(
        "--balance", type=share, default=Recipe.balance, metavar="0…1",
        help="images with a class in less than this share of all images come more often",
    )  # fmt: skip
    command.add_argument("--weight-decay", type=rate, default=Recipe.weight_decay, metavar="RATE", help="AdamW's")
    command.add_argument("--warm-up", type=natural, default=Recipe.warm_up, metavar="STEPS", help="of a rising rate")
    command.add_argument("--ema", type=share, default=Recipe.ema, metavar="0…1", help="decay of the mean of weights")
    command.add_argument(
        "--stop-after", type=positive, metavar="EPOCHS", help="end earlier than the schedule, which is for --epochs"
    )
    command.add_argument(
        "--patience", type=positive, metavar="EPOCHS",
        help="stop after so many epochs in a row without a higher AP; 5 to 10 are usual, fewer stop at a chance dip",
    )  # fmt: skip
    command.add_argument("--no-crop", action="store_true", help="whole images: for last epochs, or a short training")
    command.add_argument("--seed", type=natural, default=Recipe.seed, metavar="N", help="of all random numbers")
    command.add_argument("--weights", metavar="FILE", help="begin with these; their classes may be others")
    command.add_argument("--no-pretrained", action="store_true", help="begin with a random backbone")
    command.add_argument("--freeze-backbone", action="store_true", help="train only the neck and the head: quicker")
    command.add_argument(
        "--workers", type=natural, metavar="N", help="processes that load images (default: one a core, at most 8)"
    )
    command.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
    command.add_argument("--checkpoint-every", type=positive, default=200, metavar="STEPS", help="for going on")

    command = add(
        "evaluate", commands.evaluate, "COCO's metrics of a detector on a data set",
        "evaluate --data coco_2017 --split val2017 --json scores.json",
    )  # fmt: skip
    add_data(command, split="val, val2017, valid or dev, what is there")
    command.add_argument("--json", metavar="FILE", help="write the scores, too")
    command.add_argument(
        "--intervals", action="store_true", help="print 95 %% confidence intervals (bootstrap over images), too"
    )
    command.add_argument(
        "--results", metavar="FILE", help="score these COCO results, or a file of `detect --json`, as they are"
    )
    add_predictor(command)

    command = add(
        "export", commands.export, "write a detector as ONNX: faster on a CPU, and runs without PyTorch",
        "export --out model.onnx --weights runs/train/best.safetensors",
    )  # fmt: skip
    command.add_argument("--out", required=True, metavar="FILE.onnx", help="`detect --weights FILE.onnx` runs it")
    command.add_argument("--weights", metavar="FILE", help="(default: the ones that come with the project)")

    add_data_commands(subparsers)
    return parser


def add_threshold(command: Parser) -> None:
    command.add_argument(
        "--threshold", type=share, metavar="0…1", help="lowest score that is shown (default: as in the weights)"
    )


def add_predictor(command: Parser) -> None:
    command.add_argument("--weights", metavar="FILE", help="(default: the ones that come with the project)")
    command.add_argument(
        "--size", type=positive, metavar="PX", help="longer side of the network's input (default: as in training)"
    )
    command.add_argument(
        "--tiles", type=tile_count, default=1, metavar="N|auto",
        help="for small objects in large images: look at N overlapping tiles along the longer side, too; auto takes as "
        "many as show the full resolution; 2 takes about six times as long, 3 seven to twelve times",
    )  # fmt: skip
    command.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")
