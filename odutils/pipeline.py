"""The diagram of the whole detector that each notebook shows with its own part lit.

N images, A anchors, C classes, M ground-truth boxes.
"""

from collections.abc import Iterable
from typing import NamedTuple

from odutils.plots import COLOURS, set_style

WIDTH, HEIGHT = 1.52, 0.98  # of a box, in inches
STEP_X, STEP_Y = 1.78, 1.5  # between the centres of two boxes
LIT, PLAIN, TRAINING, BAND = COLOURS["orange"], "white", "#5b6670", "#e8eef2"


class Part(NamedTuple):
    column: float
    row: int  # 0: what inference runs; 1: what training and evaluation add
    title: str
    shape: str


PARTS = {
    "image": Part(0, 0, "image,\nor tiles of it", "(H, W, 3) uint8"),
    "augmentation": Part(1, 0, "augmentation,\nletterbox", "(N, 3, 416, 416)"),
    "backbone": Part(2, 0, "backbone", "strides 8, 16, 32\n40, 112, 1280 channels"),
    "neck": Part(3, 0, "neck", "strides 8, 16, 32, 64\n96 channels"),
    "head": Part(4, 0, "detection head", "logits (N, A, C)\noffsets (N, A, 4)"),
    "decode": Part(5, 0, "decode", "boxes (N, A, 4)\nscores (N, A, C)"),
    "nms": Part(6, 0, "non-maximum\nsuppression", "K boxes an image"),
    "detections": Part(7, 0, "detections", "boxes (K, 4), labels,\nscores (K,)"),
    "ground truth": Part(0, 1, "ground truth", "boxes (M, 4)\nlabels (M,)"),
    "anchors": Part(2, 1, "anchors,\nor points", "(A, 4), or (A, 2)"),
    "assignment": Part(3, 1, "label assignment", "(N, A): which object,\nor background"),
    "loss": Part(4, 1, "loss", "one number"),
    "optimiser": Part(5, 1, "optimiser", "new weights"),
    "evaluation": Part(7, 1, "evaluation", "AP, AP50, AR"),
}
INFERENCE = ("image", "augmentation", "backbone", "neck", "head", "decode", "nms", "detections")
ARROWS = (  # of training and evaluation: from, to
    ("ground truth", "augmentation"),
    ("augmentation", "assignment"),
    ("anchors", "assignment"),
    ("assignment", "loss"),
    ("head", "loss"),
    ("loss", "optimiser"),
    ("detections", "evaluation"),
)
LIT_IN = {  # notebook: its parts
    "01": ("image", "augmentation", "ground truth"),
    "02": ("anchors", "assignment", "decode"),
    "03": ("backbone", "neck", "head"),
    "04": ("loss",),
    "05": ("optimiser", "loss", "augmentation"),
    "06": ("decode", "nms", "detections"),
    "07": ("image", "detections"),
    "08": ("detections", "evaluation", "ground truth"),
    "09": ("image", "anchors", "assignment"),
    "10": ("ground truth", "augmentation", "loss", "optimiser", "evaluation"),
}


def draw_pipeline(lit: Iterable[str] = ()):
    """A matplotlib figure: the pipeline from image to detections, and training's branch below it.

    lit: names of parts to colour. Shapes are those of the preset `pyramid`, input 416 × 416 px. Raises KeyError for a
    part that does not exist.
    """
    import matplotlib.pyplot as plt

    lit = {name: PARTS[name] for name in lit}
    set_style()
    figure = plt.figure(figsize=(STEP_X * 8, STEP_Y * 2.1), layout="none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(-0.5, 7.5), ylim=(1.6, -0.5))
    axes.axis("off")
    draw_box(axes, -0.44, 0.6, 5.88, 0.92, fc=BAND, ec="none")
    axes.text(1, 1.46, "training only", color=TRAINING, ha="center", va="bottom", fontsize=11, style="italic")
    for name, part in PARTS.items():
        draw_part(axes, part, LIT if name in lit else PLAIN)
    for first, second in zip(INFERENCE, INFERENCE[1:], strict=False):
        draw_arrow(axes, PARTS[first], PARTS[second], "black")
    for first, second in ARROWS:
        draw_arrow(axes, PARTS[first], PARTS[second], TRAINING)
    return figure


def draw_part(axes, part: Part, colour: str) -> None:
    width, height = WIDTH / STEP_X, HEIGHT / STEP_Y
    draw_box(axes, part.column - width / 2, part.row - height / 2, width, height, fc=colour, ec="black", lw=1)
    lines = part.title.count("\n") + part.shape.count("\n")
    top = part.row - 0.11 - 0.055 * lines
    axes.text(part.column, top, part.title, ha="center", va="top", fontsize=10, weight="bold", linespacing=1.1)
    below = top + 0.14 + 0.115 * part.title.count("\n")
    axes.text(part.column, below, part.shape, ha="center", va="top", fontsize=8, linespacing=1.25)


def draw_box(axes, left: float, top: float, width: float, height: float, **style) -> None:
    from matplotlib.patches import FancyBboxPatch

    axes.add_patch(FancyBboxPatch((left, top), width, height, "round,pad=0,rounding_size=0.05", **style))


def draw_arrow(axes, first: Part, second: Part, colour: str) -> None:
    """From the side of one box that faces the other: sideways within a row, else from below or above."""
    half_width, half_height = WIDTH / STEP_X / 2, HEIGHT / STEP_Y / 2
    start, end = [first.column, first.row], [second.column, second.row]
    if first.row == second.row:
        side = 1 if second.column > first.column else -1
        start[0], end[0] = start[0] + side * half_width, end[0] - side * half_width
    else:
        side = 1 if second.row > first.row else -1
        start[1], end[1] = start[1] + side * half_height, end[1] - side * half_height
    axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", color=colour, lw=1.4, shrinkA=1, shrinkB=1))
