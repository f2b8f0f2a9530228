"""The commands that make data sets, or look at them: their options, and an example of each."""

from functools import partial

from odutils.cli import data_commands
from odutils.cli.parsing import add_command, add_data, natural, part, positive


def add_data_commands(subparsers) -> None:
    """Add the commands to those of the whole parser."""
    add = partial(add_command, subparsers)

    command = add(
        "convert", data_commands.convert, "make a data set from labels of YOLO, PASCAL VOC or Label Studio",
        "convert labels/ --from yolo --images images/ --out my_data --split train",
    )  # fmt: skip
    command.add_argument(
        "source", metavar="SOURCE",
        help="yolo: the folder of .txt files; voc: the folder of .xml files; label-studio: the file of a JSON export",
    )  # fmt: skip
    command.add_argument(
        "--from", dest="format", required=True, choices=("yolo", "voc", "label-studio"), help="format of the labels"
    )
    command.add_argument("--images", required=True, metavar="FOLDER", help="of the images, which are copied")
    command.add_argument("--out", required=True, metavar="FOLDER", help="for the data set; its files are kept")
    command.add_argument("--split", default="train", metavar="NAME", help="which part of the data set they become")
    command.add_argument(
        "--classes", metavar="FILE",
        help="class names, in order: data.yaml, or a text with one a line "
        "(default: yolo: data.yaml or classes.txt beside or above the labels; else the labels' own)",
    )  # fmt: skip

    command = add(
        "check", data_commands.check, "list what is wrong with a data set", "check --data my_data --split train"
    )
    add_data(command, split="all there are")

    command = add(
        "split", data_commands.split, "divide a data set into parts, and keep together what belongs together",
        "split --data my_data --out my_split --parts train=0.6 val=0.2 test=0.2 --by scene",
    )  # fmt: skip
    add_data(command, split="the only one there is")
    command.add_argument(
        "--out", required=True, metavar="FOLDER",
        help="for the new data set: missing, or empty; its images are hard links where possible: editing one in place "
        "changes the original, too",
    )  # fmt: skip
    command.add_argument(
        "--parts", required=True, nargs="+", type=part, metavar="NAME=SHARE", help="share of the objects; together 1"
    )
    command.add_argument(
        "--by", default="name", metavar="KEY",
        help="images go to the same part if they have the same: name (up to its last number: paper_07.jpg -> paper), "
        "folder, or a key of the image's entry in the file, such as scene; image: each goes by itself",
    )  # fmt: skip
    command.add_argument("--seed", type=natural, default=0, metavar="N", help="of the random assignment")

    download = add("download", None, "get COCO, or shared weights", "download coco --root coco_2017").add_subparsers(
        metavar="WHAT", required=True
    )
    command = add_command(
        download, "coco", data_commands.download_coco, "COCO 2017", "download coco --splits val2017 train2017"
    )
    command.add_argument("--root", default="coco_2017", metavar="FOLDER", help="where it goes")
    command.add_argument(
        "--splits", nargs="+", default=["val2017"], metavar="SPLIT", help="val2017 (1 GB; default), train2017 (19 GB)"
    )
    command = add_command(
        download, "weights", data_commands.download_weights, "weights from Google Drive",
        "download weights https://drive.google.com/file/d/ID/view --out weights.pth",
    )  # fmt: skip
    command.add_argument("link", metavar="ID_OR_LINK", help="of a file there, shared with everyone who has the link")
    command.add_argument("--out", required=True, metavar="FILE", help="where they go")

    command = add(
        "sample", data_commands.sample, "draw a small data set to play with", "sample data/sample --images 160 40"
    )
    command.add_argument("root", metavar="FOLDER", help="where it goes")
    command.add_argument(
        "--images", type=natural, nargs="+", default=[160, 40], metavar="N", help="for train and val (default: 160 40)"
    )
    command.add_argument("--size", type=positive, default=320, metavar="PX", help="of the longer side")
    command.add_argument("--seed", type=natural, default=0, metavar="N", help="of the random images")
