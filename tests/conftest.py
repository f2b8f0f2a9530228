"""What the tests share: one thread, and small data sets drawn on the spot."""

import json
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(0)


def _draw_image(height: int = 64, width: int = 96, seed: int = 0) -> np.ndarray:
    """A smooth image (H, W, 3) uint8 RGB, so that JPEG and resizing leave it recognisable; another one a seed."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _write_dataset(root: Path, objects: list[list[dict]], categories: dict[int, str], split: str = "train", **more):
    """Write a data set in COCO's layout with one 96 × 64 image for each list of objects; returns root.

    An object is {"bbox": …, "category_id": …} and whatever else its annotation should hold; image ids start at 1.
    more: `images`, a list of dicts to add to the images' entries; everything else goes to the top of the file.
    """
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations, about = [], [], more.pop("images", [{}] * len(objects))
    for image_id, (of_image, extra) in enumerate(zip(objects, about, strict=True), start=1):
        name = f"{image_id:04}.png"
        cv2.imwrite(str(root / split / name), _draw_image(seed=image_id))
        images.append({"id": image_id, "file_name": name, "width": 96, "height": 64, **extra})
        for one in of_image:
            _, _, width, height = one["bbox"]
            fixed = {"id": len(annotations) + 1, "image_id": image_id, "iscrowd": 0, "area": width * height}
            annotations.append(fixed | one)
    listed = [{"id": id_, "name": name} for id_, name in categories.items()]
    content = {"images": images, "annotations": annotations, "categories": listed, **more}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="session")
def draw_image():
    return _draw_image


@pytest.fixture(scope="session")
def write_dataset():
    return _write_dataset


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """Thirteen drawn images to train on and three to validate on: what the tests of trainings share."""
    from odutils.sample.make import make_sample

    return make_sample(tmp_path_factory.mktemp("sample") / "s", images=(13, 3), size=64, objects=(1, 3))


@pytest.fixture
def quick(monkeypatch):
    """Trainings of a tiny detector."""
    from trainings import make_quick

    make_quick(monkeypatch)


@pytest.fixture
def run(capsys):
    """`python -m odutils train` with more arguments: its exit code and what it printed."""
    from trainings import run_train

    return partial(run_train, capsys)
