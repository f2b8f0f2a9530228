"""Protects augmentation: boxes stay on their objects, what is hardly visible is dropped, an image is
resized once at most, and the same (seed, epoch, index) gives the same bytes."""

import pickle
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch

from odutils import augmentation
from odutils.augmentation import Augment, clip_boxes, import_imgaug, saturate
from odutils.datasets import CocoDetections
from odutils.images import GREY, fit

# Far from each other, from the background and from the border's grey: what resizing mixes stays recognisable.
COLOURS = np.float32([[255, 0, 0], [0, 255, 0], [255, 255, 0]])
OTHERS = np.float32([[0, 0, 120], [GREY] * 3])
BOXES = np.float32([[10, 20, 70, 60], [120, 30, 180, 130], [30, 100, 90, 140]])


def painted(height=150, width=200):
    """A dark blue image with one rectangle in each of COLOURS."""
    image = np.full((height, width, 3), OTHERS[0], np.uint8)
    for colour, (x1, y1, x2, y2) in zip(COLOURS, BOXES.astype(int), strict=True):
        image[y1:y2, x1:x2] = colour
    return image


def pixels_of(image):
    """For each of COLOURS where it is the nearest colour: three (H, W) bool."""
    distances = np.linalg.norm(image[:, :, None] - np.concatenate([COLOURS, OTHERS]), axis=-1)  # (H, W, colours)
    return [distances.argmin(axis=-1) == index for index in range(len(COLOURS))]


def box_around(mask):
    rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.fixture
def geometry_only(monkeypatch):
    """A function (size, squash) -> Augment that leaves the colours as they are."""

    def make(size, squash=False):
        augment = Augment(size, squash, seed=1)
        monkeypatch.setattr(augment, "colour", lambda image, chance: image)
        return augment

    return make


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.parametrize("size", [128, 333])
def test_boxes_follow_the_pixels(geometry_only, size, squash):
    augment, moved, seen = geometry_only(size, squash), 0, 0
    for index in range(60):
        image, boxes, kept = augment(painted(), BOXES, 0, index)
        assert image.shape == (size, size, 3) and image.dtype == np.uint8
        for box, keep, mask in zip(boxes * size, kept, pixels_of(image), strict=True):
            if keep:
                assert np.abs(box - box_around(mask)).max() < 1.5
                seen += 1
                moved += np.abs(box - BOXES[0] * size / 200).max() > 2
            assert box.min() >= 0 and box.max() <= size + 1e-3
    assert seen > 100 and moved > 100


def test_what_keeps_less_than_a_third_is_dropped(geometry_only, monkeypatch):
    """Counted in pixels, on the image before it is resized: nothing is mixed there."""
    images = []
    monkeypatch.setattr(augmentation, "fit", lambda image, *more, **quick: images.append(image) or fit(image, *more))
    augment, dropped = geometry_only(64), 0
    areas = (BOXES[:, 2] - BOXES[:, 0]) * (BOXES[:, 3] - BOXES[:, 1])
    for index in range(150):
        _, _, kept = augment(painted(), BOXES, 0, index)
        shares = np.array([mask.sum() for mask in pixels_of(images.pop())]) / areas
        certain = np.abs(shares - 1 / 3) > 0.03
        assert (kept == (shares > 1 / 3))[certain].all()
        dropped += (~kept).sum()
    assert dropped > 5


def test_the_data_set_drops_boxes_with_their_labels(tmp_path, write_dataset):
    objects = [[{"bbox": [0, 0, 8, 64], "category_id": 1}, {"bbox": [30, 20, 30, 20], "category_id": 1}]]
    root = write_dataset(tmp_path / "d", objects, {1: "person"})
    dataset = CocoDetections(root, "train", size=64, augment=Augment(64))
    examples = [dataset[epoch, 0] for epoch in range(60)]
    assert all(len(boxes) == len(labels) for _, boxes, labels, _ in examples)
    assert 60 < sum(len(labels) for _, _, labels, _ in examples) < 120


def test_clip_boxes():
    boxes = np.float32([[-10, 0, 20, 10], [-25, 0, 5, 10], [50, 50, 60, 60], [3, 3, 3, 9], [1, 1, 2, 2]])
    clipped, kept = clip_boxes(boxes, 40, 30)
    assert kept.tolist() == [True, False, False, False, True]
    assert clipped[[0, 4]].tolist() == [[0, 0, 20, 10], [1, 1, 2, 2]]
    assert clip_boxes(boxes, 40, 30, keep=0)[1].tolist() == [True, True, False, False, True]
    assert boxes[0, 0] == -10  # the argument is left alone


@pytest.mark.parametrize("height, width", [(150, 200), (128, 128), (40, 60), (1, 1)])
def test_an_image_is_resized_once_at_most(monkeypatch, height, width):
    calls = []
    ways = [(cv2, name) for name in ("resize", "warpAffine", "warpPerspective", "remap")]
    for module, name in [*ways, (torch.nn.functional, "interpolate")]:
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _f=original, _n=name, **k: calls.append(_n) or _f(*a, **k))
    augment, image = Augment(128), np.zeros((height, width, 3), np.uint8)
    for index in range(40):
        calls.clear()
        augment(image, np.zeros((0, 4), np.float32), 0, index)
        assert calls in ([], ["interpolate"], ["resize"])


@pytest.mark.parametrize("factor", [0.0, 0.3, 1.0, 1.6])
def test_saturation_is_imgaugs(factor):
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    expected = import_imgaug().augmenters.pillike.enhance_color(image, factor)
    assert np.abs(saturate(image, factor).astype(int) - expected.astype(int)).max() <= 2  # levels, by rounding


def test_chance_is_a_function_of_seed_epoch_and_index():
    keys = [(epoch, index) for epoch in range(3) for index in range(4)]
    augment, other = Augment(96, seed=3), Augment(96, seed=3)
    there = {key: augment(painted(), BOXES, *key) for key in keys}
    np.random.seed(5)
    back = {key: other(painted(), BOXES, *key) for key in reversed(keys)}
    for key in keys:
        assert all(np.array_equal(a, b) for a, b in zip(there[key], back[key], strict=True))
    assert len({image.tobytes() for image, *_ in there.values()}) == len(keys)
    assert not np.array_equal(Augment(96, seed=4)(painted(), BOXES, 0, 0)[0], there[0, 0][0])


def test_without_crop_the_whole_image_stays():
    image, boxes = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3), np.float32([[1, 1, 3, 4]])
    kinds = set()
    for index in range(20):
        changed, moved = Augment(64, crop=False).geometry(image, boxes, np.random.default_rng(index))
        flipped = not np.array_equal(changed, image)
        kinds.add(flipped)
        assert np.array_equal(changed, image[:, ::-1] if flipped else image)
        assert moved.tolist() == ([[3, 1, 5, 4]] if flipped else [[1, 1, 3, 4]])
    assert kinds == {True, False}


def test_the_argument_is_left_alone():
    image, boxes, augment = painted(), BOXES.copy(), Augment(96)
    for index in range(10):
        augment(image, boxes, 0, index)
    assert np.array_equal(image, painted()) and np.array_equal(boxes, BOXES)


def test_it_can_be_sent_to_a_loader_process():
    """Where processes are not forked (macOS, Windows, Linux from Python 3.14), a data set travels as a pickle."""
    augment = Augment(64, seed=3)
    copy = pickle.loads(pickle.dumps(augment))
    for index in range(10):
        there, back = augment(painted(), BOXES, 0, index), copy(painted(), BOXES, 0, index)
        assert all(np.array_equal(a, b) for a, b in zip(there, back, strict=True))


def test_images_without_objects():
    _, boxes, kept = Augment(64)(painted(), np.zeros((0, 4), np.float32), 0, 0)
    assert boxes.shape == (0, 4) and kept.shape == (0,)


def test_imgaug_works_with_this_numpy_and_is_loaded_when_needed_only():
    """In a process of its own, so that nothing has patched numpy before."""
    code = (
        "import sys, numpy as np, odutils.augmentation as a\n"
        "assert 'imgaug' not in sys.modules\n"
        "image = np.full((40, 60, 3), 90, np.uint8)\n"
        "out = [a.Augment(32)(image, np.float32([[5, 5, 30, 30]]), 0, i)[0] for i in range(40)]\n"
        "assert len({o.tobytes() for o in out}) == 40"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
