"""The images of the README, made anew after the weights or the notebooks have changed:

    python docs/make_images.py

Writes detections.jpg (the photographs of data/photos), clip.gif (part of data/clip.mp4), pipeline.svg, and
thumbnails/*.jpg, each cut from the first image of a notebook as it is stored that is not the pipeline.
"""

import base64
import io
import json
import sys
from itertools import islice
from pathlib import Path

import cv2
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
from odutils.drawing import draw_detections, write_image  # noqa: E402
from odutils.files import DATA, replacing  # noqa: E402
from odutils.images import read_image  # noqa: E402
from odutils.inference import Predictor  # noqa: E402
from odutils.pipeline import draw_pipeline  # noqa: E402
from odutils.video.reader import read_frames  # noqa: E402

ROWS = (  # photographs of about the same height beside each other
    ("astronaut", "kitten", "dogs_at_window", "shepherd"),
    ("cyclist", "cows", "wine"),
    ("giraffes", "horses", "coffee"),
    ("street", "colosseum"),
)
WIDTH, GUTTER, TALLEST = 1600, 8, 420  # pixels
CLIP_FRAMES, CLIP_WIDTH, CLIP_COLOURS = range(30, 190, 5), 400, 48
THUMBNAIL, WIDEST = (320, 200), 4  # the pipeline's diagram is wider


def scaled(image, detections, height):
    """Image and boxes at another height: names are drawn afterwards, so that they are as large in every image."""
    scale = height / image.shape[0]
    small = cv2.resize(image, (round(image.shape[1] * scale), height), interpolation=cv2.INTER_AREA)
    return small, detections._replace(boxes=detections.boxes * scale)


def detections_grid(predictor):
    rows = []
    for names in ROWS:
        photos = [read_image(DATA / "photos" / f"{name}.jpg") for name in names]
        shapes = sum(photo.shape[1] / photo.shape[0] for photo in photos)
        height = min(TALLEST, int((WIDTH - GUTTER * (len(names) - 1)) / shapes))
        tiles = [draw_detections(*scaled(photo, predictor(photo), height), predictor.classes) for photo in photos]
        row = np.concatenate(
            [np.pad(t, ((0, GUTTER), (0, GUTTER), (0, 0)), constant_values=255) for t in tiles], axis=1
        )
        rows.append(np.pad(row, ((0, 0), (0, max(0, WIDTH - row.shape[1])), (0, 0)), constant_values=255)[:, :WIDTH])
    write_image(DOCS / "detections.jpg", np.concatenate(rows)[:-GUTTER])


def animated_clip(predictor):
    chosen = islice(read_frames(DATA / "clip.mp4"), CLIP_FRAMES.start, CLIP_FRAMES.stop, CLIP_FRAMES.step)
    images = []
    for _, frame in chosen:
        height = round(frame.shape[0] * CLIP_WIDTH / frame.shape[1])
        drawn = draw_detections(*scaled(frame, predictor(frame), height), predictor.classes)
        images.append(Image.fromarray(drawn).quantize(CLIP_COLOURS, dither=Image.Dither.NONE))
    with replacing(DOCS / "clip.gif") as temporary:
        images[0].save(temporary, save_all=True, append_images=images[1:], duration=200, loop=0, optimize=True)


def thumbnail(notebook):
    outputs = [o for cell in json.loads(notebook.read_text())["cells"] for o in cell.get("outputs", [])]
    stored = (o["data"]["image/jpeg"] for o in outputs if "image/jpeg" in o.get("data", {}))
    images = (np.asarray(Image.open(io.BytesIO(base64.b64decode(one))).convert("RGB")) for one in stored)
    image = next(one for one in images if one.shape[1] < WIDEST * one.shape[0])
    width, height = THUMBNAIL
    scale = max(width / image.shape[1], height / image.shape[0])
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (small.shape[0] - height) // 2, (small.shape[1] - width) // 2
    write_image(DOCS / "thumbnails" / f"{notebook.stem}.jpg", small[top : top + height, left : left + width])


def pipeline(path):
    with plt.rc_context({"svg.hashsalt": "odutils"}), replacing(path) as temporary:
        draw_pipeline().savefig(temporary, format="svg", metadata={"Date": None})


def main():
    pipeline(DOCS / "pipeline.svg")
    predictor = Predictor.from_weights(device="cpu")
    detections_grid(predictor)
    animated_clip(predictor)
    for notebook in sorted((DOCS.parent / "nbs").glob("*.ipynb")):
        thumbnail(notebook)
    for path in sorted(DOCS.rglob("*.*")):
        print(f"{path.relative_to(DOCS.parent)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
