"""What the command line understands: its commands, their options, and an example of each."""

import argparse

from odutils.cli import commands
from odutils.recipe import Recipe


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line."""

    def error(self, message: str):
        self.exit(2, f"odutils: {' '.join(message.split())} (see {self.prog} --help)\n")


def make_parser() -> Parser:
    parser = Parser("python -m odutils", description="Finds objects in images and videos, and learns to.")
    parser.add_argument("--traceback", action="store_true", help="show where in the code an error arose")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, function, purpose: str, example: str, parents=subparsers) -> Parser:
        command = parents.add_parser(
            name,
            help=purpose,
            description=purpose[0].upper() + purpose[1:] + ".",
            epilog=f"example:\n  python -m odutils {example}",
            formatter_class=ExampleFormatter,
        )
        command.set_defaults(command=function)
        command.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
        return command

    command = add("detect", commands.detect, "draw boxes on images", "detect holiday/ cat.jpg --out found")
    command.add_argument("paths", nargs="+", metavar="PATH", help="an image, or a folder of images")
    command.add_argument("--recursive", action="store_true", help="take the images of sub-folders, too")
    command.add_argument("--out", default="runs/detect", metavar="FOLDER", help="for the annotated images")
    command.add_argument("--json", metavar="FILE", help="write what was found in COCO's form, too")
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
    command.add_argument("--preset", choices=("pyramid", "article"), default=Recipe.preset, help="kind of detector")
    command.add_argument(
        "--size", type=positive, metavar="PX", help=f"of the input (default: {Recipe.size}; article: 224)"
    )
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
        help="stop after so many epochs in a row without a better AP; 5 to 10 are usual, fewer stop at a chance dip",
    )  # fmt: skip
    command.add_argument("--no-crop", action="store_true", help="whole images: for last epochs, or a short training")
    command.add_argument("--seed", type=natural, default=Recipe.seed, metavar="N", help="another one, another run")
    command.add_argument("--weights", metavar="FILE", help="begin with these; their classes may be others")
    command.add_argument("--no-pretrained", action="store_true", help="begin with a random backbone")
    command.add_argument("--freeze-backbone", action="store_true", help="train the head alone: quicker")
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
        "--results", metavar="FILE", help="score these COCO results, or a file of `detect --json`, instead"
    )
    command.add_argument("--weights", metavar="FILE", help="(default: the ones that come with the project)")
    command.add_argument("--size", type=positive, metavar="PX", help="of the longer side (default: as in training)")
    command.add_argument("--device", metavar="NAME", help="cpu, cuda, … (default: the best there is)")

    command = add("check", commands.check, "list what is wrong with a data set", "check --data my_data --split train")
    add_data(command, split="all there are")

    download = add("download", None, "get COCO, or shared weights", "download coco --root coco_2017").add_subparsers(
        metavar="WHAT", required=True
    )
    command = add("coco", commands.download_coco, "COCO 2017", "download coco --splits val2017 train2017", download)
    command.add_argument("--root", default="coco_2017", metavar="FOLDER", help="where it goes")
    command.add_argument(
        "--splits", nargs="+", default=["val2017"], metavar="SPLIT", help="val2017 (1 GB; default), train2017 (19 GB)"
    )
    command = add(
        "weights", commands.download_weights, "weights from Google Drive",
        "download weights https://drive.google.com/file/d/ID/view --out weights.pth", download,
    )  # fmt: skip
    command.add_argument("link", metavar="ID_OR_LINK", help="of a file there, shared with everyone who has the link")
    command.add_argument("--out", required=True, metavar="FILE", help="where they go")

    command = add(
        "export", commands.export, "write a detector as ONNX: faster on a CPU, and runs without PyTorch",
        "export --out model.onnx --weights runs/train/best.safetensors",
    )  # fmt: skip
    command.add_argument("--out", required=True, metavar="FILE.onnx", help="`detect --weights FILE.onnx` runs it")
    command.add_argument("--weights", metavar="FILE", help="(default: the ones that come with the project)")

    command = add("sample", commands.sample, "draw a small data set to play with", "sample data/sample --images 160 40")
    command.add_argument("root", metavar="FOLDER", help="where it goes")
    command.add_argument(
        "--images", type=natural, nargs="+", default=[160, 40], metavar="N", help="for train and val (default: 160 40)"
    )
    command.add_argument("--size", type=positive, default=320, metavar="PX", help="of the longer side")
    command.add_argument("--seed", type=natural, default=0, metavar="N", help="another one, other images")
    return parser


class ExampleFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    """Keeps the example's lines, and adds the default to the help of each option that has one."""

    def _get_help_string(self, action):
        has_default = isinstance(action.default, str | float | int) and action.default is not False and action.help
        return super()._get_help_string(action) if has_default else action.help


def add_predictor(command: Parser) -> None:
    command.add_argument(
        "--threshold", type=share, metavar="0…1", help="lowest score that is shown (default: as in the weights)"
    )
    command.add_argument("--weights", metavar="FILE", help="(default: the ones that come with the project)")
    command.add_argument("--device", metavar="NAME", help="cpu, cuda or mps (default: the best there is)")


def add_data(command: Parser, split: str | None = None) -> None:
    command.add_argument("--data", required=True, metavar="FOLDER", help="annotations/instances_SPLIT.json and SPLIT/")
    if split:
        command.add_argument("--split", metavar="NAME", help=f"(default: {split})")


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def positive(text: str) -> int:
    if not natural(text):
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)


def share(text: str) -> float:
    return at_most(text, 1)


def rate(text: str) -> float:
    return at_most(text, 100)


def at_most(text: str, highest: float) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not 0 <= number <= highest:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to {highest}")
    return number
