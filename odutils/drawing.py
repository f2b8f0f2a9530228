"""Boxes on images with OpenCV, grids of images, and images in notebooks.

An image is a `uint8` array (H, W, 3), RGB. Boxes here are xyxy in pixels of the image.
"""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from odutils.classes import CLASSES, colour_of, readable_on
from odutils.errors import InputError
from odutils.files import replacing

FONT = cv2.FONT_HERSHEY_DUPLEX
LETTERS_HAVE_WEIGHT = int(cv2.__version__.split(".")[0]) >= 5  # true letters; before 5 they were strokes of one width
TEXT_SIZE = 1 / 32 if LETTERS_HAVE_WEIGHT else 1 / 40  # height of a line, of the image's size (root of its area)
LINE_WIDTH = 1 / 150  # of the image's size
SMALLEST_TEXT = 11.0  # pixels: below it letters run together
JPEG_QUALITY = 90
LETTERS_PER_INCH = 12.5  # of a title in a notebook, at 10 points
SUFFIXES = (".jpg", ".jpeg", ".png")


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[int] | None = None,
    scores: Sequence[float] | None = None,
    classes: Sequence[str] = CLASSES,
    texts: Sequence[str] | None = None,
    colours: Sequence[tuple[int, int, int]] | None = None,
    thickness: int | None = None,
) -> np.ndarray:
    """Draw boxes with their names on a copy of the image; the most confident one is drawn last, on top.

    image: (H, W, 3) uint8 RGB, not modified.   boxes: (K, 4) xyxy pixels; what lies outside is cut off at the border.
    labels: (K,) 1…C, give each box its class's colour and name.   scores: (K,) 0…1, are added to the name in %.
    texts: K texts in place of the names ("" for no tag).   colours: K (r, g, b) in place of the classes' own.
    thickness: of the line in pixels, by default in proportion to the image.
    Returns a new (H, W, 3) uint8 RGB array. Raises InputError for another kind of image or boxes that do not fit it.
    """
    canvas = np.array(checked(image), order="C")  # a copy, whatever the strides and whether writeable or not
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    for index in np.flatnonzero(~np.isfinite(boxes).all(axis=1)):
        raise InputError(f"box {index} to be drawn is not made of finite numbers: {boxes[index].tolist()}")
    for name, given in (("labels", labels), ("scores", scores), ("texts", texts), ("colours", colours)):
        if given is not None and len(given) != len(boxes):
            raise InputError(f"{len(boxes)} boxes to be drawn but {len(given)} {name}: give one to each box")

    height, width = canvas.shape[:2]
    size = (height * width) ** 0.5
    thickness = thickness or max(1, round(size * LINE_WIDTH))
    order = np.argsort(scores, kind="stable") if scores is not None else np.arange(len(boxes))[::-1]
    tags = []
    for index in order:
        x1, y1, x2, y2 = boxes[index]
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            continue  # nothing of it is in the image
        left, right = (int(x) for x in np.clip(np.round([x1, x2]), 0, width - 1))
        top, bottom = (int(y) for y in np.clip(np.round([y1, y2]), 0, height - 1))
        label = int(labels[index]) if labels is not None else 1
        colour = tuple(int(channel) for channel in (colours[index] if colours is not None else colour_of(label)))
        if thickness > 1:  # a light rim: a green box is seen on grass, a dark one in the night
            rim = 2 * max(1, thickness // 4)
            _draw_outline(canvas, left, top, right, bottom, tuple(171 + c // 3 for c in colour), thickness + rim)
        _draw_outline(canvas, left, top, right, bottom, colour, thickness)
        name = [classes[label - 1]] if labels is not None and texts is None else []
        score = [f"{scores[index]:.0%}"] if scores is not None else []
        text = " ".join(name + score) if texts is None else texts[index]
        if text:
            tags.append((text, left, top, colour))
    for tag in tags:  # after all boxes, so that no line crosses a text
        _draw_tag(canvas, *tag, max(SMALLEST_TEXT, size * TEXT_SIZE), thickness)
    return canvas


def draw_detections(image: np.ndarray, detections, classes: Sequence[str] = CLASSES) -> np.ndarray:
    """Draw what a Predictor found: a short form of `draw_boxes` for Detections."""
    return draw_boxes(image, detections.boxes, detections.labels, detections.scores, classes)


def _draw_outline(canvas: np.ndarray, left: int, top: int, right: int, bottom: int, colour: tuple, line: int) -> None:
    """Draw four filled strips: OpenCV's own lines of 4 pixels are 5 wide, and anti-aliasing dulls their colour."""
    before, after = line // 2, line - line // 2 - 1
    for y in (top, bottom):
        cv2.rectangle(canvas, (left - before, y - before), (right + after, y + after), colour, cv2.FILLED)
    for x in (left, right):
        cv2.rectangle(canvas, (x - before, top - before), (x + after, bottom + after), colour, cv2.FILLED)


def checked(image: np.ndarray) -> np.ndarray:
    """The image itself if it is one, (H, W, 3) uint8; else InputError."""
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise InputError(f"an image is a uint8 array (H, W, 3) in RGB, not {image.dtype} {image.shape}")
    return image


def tile_images(images: Sequence[np.ndarray], columns: int = 3, width: int = 960, gutter: int = 8) -> np.ndarray:
    """Tile images of any size, row by row, into one (H, width, 3) array on white, every gutter `gutter` pixels wide.

    Each image is scaled to the width of its column (one taller than 4:3 upright, to that height) and is not distorted.
    """
    images = [checked(image) for image in images]
    columns = max(1, min(columns, len(images)))
    usable = width - gutter * (columns - 1)
    if not images or usable < columns:
        raise InputError(f"cannot tile {len(images)} images into {columns} columns of a grid {width} pixels wide")
    starts = [usable * column // columns + gutter * column for column in range(columns + 1)]  # widths: ± 1
    rows = []
    for first in range(0, len(images), columns):
        cells = []
        for column, image in enumerate(images[first : first + columns]):
            cell_width = starts[column + 1] - gutter - starts[column]
            scale = min(cell_width / image.shape[1], cell_width * 4 / 3 / image.shape[0])
            new_size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
            method = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            cells.append((starts[column], cell_width, cv2.resize(image, new_size, interpolation=method)))
        row = np.full((max(cell.shape[0] for _, _, cell in cells), width, 3), 255, np.uint8)
        for start, cell_width, cell in cells:
            left, top = start + (cell_width - cell.shape[1]) // 2, (row.shape[0] - cell.shape[0]) // 2
            row[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
        rows += [row, np.full((gutter, width, 3), 255, np.uint8)]
    return np.concatenate(rows[:-1])


def show(images, titles: Sequence[str] | None = None, columns: int = 3, width: float = 9.6) -> None:
    """Show one image or several in a notebook, as JPEG, so that the notebook stays small; `width` in inches.

    Long titles go on in a second line. Only this figure is a JPEG: curves drawn by other cells stay sharp. Outside a
    notebook matplotlib opens its window.
    """
    import matplotlib.pyplot as plt

    images = [images] if isinstance(images, np.ndarray) and images.ndim == 3 else list(images)
    titles = [titles] if isinstance(titles, str) else list(titles or [""] * len(images))
    columns = max(1, min(columns, len(images)))
    rows = -(-len(images) // columns)
    tallest = max(min(image.shape[0] / image.shape[1], 4 / 3) for image in images)
    letters = max(1, int(width / columns * LETTERS_PER_INCH))
    titles = ["\n".join(textwrap.fill(line, letters) for line in title.split("\n")) for title in titles]
    lines = max(title.count("\n") for title in titles) + 1
    row_height = width / columns * tallest + (0.14 + 0.16 * lines if any(titles) else 0.05)
    figure, axes = plt.subplots(rows, columns, figsize=(width, rows * row_height), squeeze=False, layout="constrained")
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, title in zip(axes.flat, images, titles, strict=False):
        axis.imshow(checked(image), interpolation="antialiased")
        axis.set_title(title, fontsize=10)
    if "inline" not in plt.get_backend():
        return plt.show()
    from IPython.display import Image, display

    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs={"quality": 70, "optimize": True})  # a notebook holds many
    plt.close(figure)
    display(Image(file.getvalue(), format="jpeg"))


def write_image(path: str | Path, image: np.ndarray) -> None:
    """Write an image as JPEG or PNG, by the suffix; the file is whole or not there. Raises InputError."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"cannot write {path}: images are written as {', '.join(SUFFIXES)}")
    swapped = np.ascontiguousarray(checked(image)[:, :, ::-1])  # OpenCV writes BGR
    quality = [] if path.suffix.lower() == ".png" else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, encoded = cv2.imencode(path.suffix.lower(), swapped, quality)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded.tobytes())


def _draw_tag(canvas: np.ndarray, text: str, left: int, top: int, colour: tuple, text_size: float, line: int) -> None:
    """Draw a filled tag on top of the box whose corner is (left, top), or inside it where the image ends above."""
    height, width = canvas.shape[:2]
    # Letters are measured, not assumed: OpenCV 5 draws others than OpenCV 4.
    scale = text_size / (cv2.getTextSize("H", FONT, 10.0, 1)[0][1] / 10.0)
    weight = 1 if LETTERS_HAVE_WEIGHT else max(1, round(text_size / 12))
    padding = text_size * 0.4
    (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, weight)
    tag_width, tag_height = text_width + 2 * padding, text_height + below + padding / 2
    if (shrink := min(width / tag_width, height / tag_height)) < 1.0:  # the tag is larger than the whole image
        scale, padding = scale * shrink, padding * shrink
        (text_width, text_height), below = cv2.getTextSize(text, FONT, scale, weight)
    tag_width = min(width, round(text_width + 2 * padding))
    tag_height = min(height, round(text_height + below + padding / 2))

    outer = line // 2  # of the box's line, half lies outside the corner: the tag is flush with it
    tag_left = max(0, min(left - outer, width - tag_width))
    tag_top = top - outer - tag_height + 1
    tag_top = tag_top if tag_top >= 0 else max(0, min(top - outer, height - tag_height))
    canvas[tag_top : tag_top + tag_height, tag_left : tag_left + tag_width] = colour
    baseline = tag_left + round(padding), tag_top + round(padding / 4) + text_height
    cv2.putText(canvas, text, baseline, FONT, scale, readable_on(colour), weight, cv2.LINE_AA)
