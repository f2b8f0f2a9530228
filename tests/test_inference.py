"""Protects what a user gets: the right boxes in the right pixels, each object once, whatever the image comes as."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from odutils.anchors import article_grid, pyramid_grid
from odutils.devices import best_device
from odutils.errors import InputError
from odutils.images import fit, input_shape
from odutils.inference import Predictor, as_array, to_detections
from odutils.presets import build
from odutils.selection import select, select_batch, select_together

LOW = 0.05  # threshold at which a network with random weights finds something


# ---- from predictions to boxes, against a literal version


def overlap(a, b):
    """IoU of two boxes (4,), in plain numbers."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def decode_one(grid, anchor, code):
    """One box from its code, as the preset's description says."""
    x1, y1, x2, y2 = grid.boxes[anchor].double().tolist()
    code = code.double()
    if grid.coding == "sides":
        step_x, step_y = grid.steps[anchor].double().tolist()
        left, top, right, bottom = (code.exp() + 1).log().tolist()
        x, y = (x1 + x2) / 2, (y1 + y2) / 2
        box = [x - left * step_x, y - top * step_y, x + right * step_x, y + bottom * step_y]
    else:
        move_x, move_y, grow_x, grow_y = (code.tanh() / 2).tolist()
        width, height = x2 - x1, y2 - y1
        x, y = (x1 + x2) / 2 + move_x * width, (y1 + y2) / 2 + move_y * height
        width, height = width * (1 + grow_x), height * (1 + grow_y)
        box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    return [min(max(value, 0), 1) for value in box]


def select_literally(logits, codes, grid, threshold, iou_threshold, class_agnostic, max_detections, top_k):
    answers = []
    for anchor, row in enumerate(logits.double().sigmoid().tolist()):
        answers += [(score, anchor, label) for label, score in enumerate(row, start=1) if score > threshold]
    answers = sorted(answers, reverse=True)[:top_k]
    found = [(score, label, decode_one(grid, anchor, codes[anchor])) for score, anchor, label in answers]
    for across_classes, limit in [(False, iou_threshold)] + [(True, 0.7)] * class_agnostic:
        kept = []
        for score, label, box in found:
            rivals = (other for _, other_label, other in kept if across_classes or label == other_label)
            if all(overlap(box, other) <= limit for other in rivals):
                kept.append((score, label, box))
        found = kept
    return found[:max_detections]


@pytest.mark.parametrize("grid", [pyramid_grid(64, 128), article_grid()], ids=["pyramid", "article"])
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("max_detections, top_k", [(100, 400), (7, 50)])
def test_select_equals_the_literal_version(grid, class_agnostic, max_detections, top_k):
    generator = torch.Generator().manual_seed(max_detections)
    logits = torch.randn(len(grid), 3, generator=generator) - 1
    codes = torch.randn(len(grid), 4, generator=generator)
    options = dict(
        threshold=0.6, iou_threshold=0.5, class_agnostic=class_agnostic, max_detections=max_detections, top_k=top_k
    )
    boxes, labels, scores = select(logits, codes, grid, **options)
    expected = select_literally(logits, codes, grid, **options)
    assert 3 < len(expected) <= max_detections
    assert labels.tolist() == [label for _, label, _ in expected]
    assert torch.allclose(scores.double(), torch.tensor([score for score, *_ in expected]).double(), atol=1e-6)
    assert torch.allclose(boxes.double(), torch.tensor([box for *_, box in expected]).double(), atol=1e-5)


@pytest.mark.parametrize("grid", [pyramid_grid(64, 128), article_grid()], ids=["pyramid", "article"])
@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("max_detections, top_k", [(100, 400), (7, 50)])
@pytest.mark.parametrize("together", [select_together, select_batch])
def test_images_together_equal_each_alone(grid, class_agnostic, max_detections, top_k, together):
    """`select_together` is what a GPU runs. Equal scores, too, stay in their order."""
    generator = torch.Generator().manual_seed(top_k)
    logits = torch.randn(5, len(grid), 3, generator=generator) - 2
    logits = (logits * 50).round() / 50  # many are equal
    logits[2] = -9  # an image without objects
    logits[4] += 1
    codes = torch.randn(5, len(grid), 4, generator=generator)
    options = dict(threshold=0.4, class_agnostic=class_agnostic, max_detections=max_detections, top_k=top_k)
    found = together(logits, codes, grid, **options)
    expected = [select(*one, grid, **options) for one in zip(logits, codes, strict=True)]
    assert sorted(len(labels) for _, labels, _ in expected)[1] > 3 and len(found) == 5
    for one, alone in zip(found, expected, strict=True):
        assert torch.equal(one[1], alone[1]) and [a.dtype for a in one] == [a.dtype for a in alone]
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, alone, strict=True))


@pytest.mark.parametrize("together", [select_together, select_batch])
def test_no_images_and_no_detections(together):
    grid = pyramid_grid(64, 64)
    assert together(torch.zeros(0, len(grid), 2), torch.zeros(0, len(grid), 4), grid) == []
    (boxes, labels, scores), _ = together(torch.full((2, len(grid), 2), -9.0), torch.zeros(2, len(grid), 4), grid)
    assert boxes.shape == (0, 4) and labels.shape == scores.shape == (0,)


def test_the_last_of_many_classes_is_suppressed_as_the_first():
    """For NMS class 1,000 is moved far away, where float32 no longer tells these boxes' overlap of 0.501 from 0.5."""
    grid = pyramid_grid(512, 512)
    boxes, half = grid.boxes.clone(), torch.tensor(0.012)
    centre = (boxes[2000, :2] + boxes[2001, 2:]) / 2  # between two anchors, within the reach of both
    boxes[2000] = torch.cat([centre - half, centre + half])
    boxes[2001] = boxes[2000] + torch.tensor([0.00798, 0, 0.00798, 0])
    for column in (0, 999):
        logits = torch.full((len(grid), 1000), -20.0)
        logits[2000:2002, column] = torch.tensor([3.0, 2.0])
        assert len(select(logits, grid.encode(boxes), grid)[1]) == 1


@pytest.fixture
def answers():
    """A function: {(label, (x1, y1, x2, y2)): score} -> logits, codes, grid of a 64 × 64 input with those answers."""

    def make(wanted):
        grid = pyramid_grid(64, 64)
        logits, boxes = torch.full((len(grid), 4), -20.0), grid.boxes.clone()
        for row, ((label, box), score) in enumerate(wanted.items()):
            anchor = 27 + row  # in the middle of the finest level, so that every side is within reach
            logits[anchor, label - 1] = torch.tensor(score).logit()
            boxes[anchor] = torch.tensor(box)
        return logits, grid.encode(boxes), grid

    return make


WHOLE, MOST_OF_IT, HALF = (0.0, 0.0, 1.0, 1.0), (0.0, 0.0, 1.0, 0.75), (0.0, 0.0, 1.0, 0.65)  # IoU 1, 0.75, 0.65


def labels_of(answers, **options):
    return select(*answers, **options)[1].tolist()


def test_two_names_for_one_object_compete(answers):
    close = answers({(1, WHOLE): 0.5, (2, MOST_OF_IT): 0.9, (3, HALF): 0.8})
    assert labels_of(close) == [2]  # 2 and 3 overlap by 0.87, 2 and 1 by 0.75: the best score wins
    assert labels_of(close, class_agnostic=False) == [2, 3, 1]
    assert labels_of(answers({(1, WHOLE): 0.5, (3, HALF): 0.8})) == [3, 1]  # 0.65: a rider and a horse


def test_one_class_is_suppressed_earlier(answers):
    assert labels_of(answers({(1, WHOLE): 0.5, (1, HALF): 0.8}), iou_threshold=0.6) == [1]
    assert labels_of(answers({(1, WHOLE): 0.5, (1, HALF): 0.8}), iou_threshold=0.66) == [1, 1]


def test_thresholds_at_the_ends_of_a_slider(answers):
    some = answers({(1, WHOLE): 0.5})
    assert len(select(*some, threshold=0.0)[0]) > 1
    assert select(*some, threshold=1.0)[0].shape == (0, 4)
    assert select(*some, threshold=0.51)[1].shape == (0,)


# ---- from images to detections, with a small input and random weights


@pytest.fixture(scope="module")
def predictors():
    """{squash: Predictor} with random weights, seeded, whose class scores are spread out."""
    torch.manual_seed(0)
    detector = build("pyramid", classes=("a", "b", "c"))
    detector.settings = detector.settings._replace(size=128)
    for module in detector.modules():  # batch norm of random weights: what a short training would have measured
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    detector.train()
    with torch.no_grad():
        detector(torch.randint(0, 256, (4, 3, 128, 128), dtype=torch.uint8))
    torch.nn.init.normal_(detector.head.class_output.weight, std=0.5)
    torch.nn.init.normal_(detector.head.box_output.weight, std=0.3)
    return {squash: Predictor(with_setting(detector, squash=squash), "cpu", LOW) for squash in (False, True)}


def with_setting(detector, **settings):
    detector = copy.deepcopy(detector)
    detector.settings = detector.settings._replace(**settings)
    return detector


SHAPES = [(90, 160), (160, 90), (64, 64), (300, 200), (33, 128), (1, 1)]


@pytest.fixture(scope="module")
def images(draw_image):
    return [draw_image(*shape, seed=index) for index, shape in enumerate(SHAPES)]


def same(found, other):
    return len(found.labels) == len(other.labels) and all(
        np.allclose(a, b, atol=1e-3) for a, b in zip(found, other, strict=True)
    )


@pytest.mark.parametrize("squash", [False, True])
def test_detections_lie_in_the_image_best_first(predictors, images, squash):
    for image in images:
        boxes, labels, scores = predictors[squash](image)
        height, width = image.shape[:2]
        assert len(boxes) and (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= [width, height]).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (np.diff(scores) <= 0).all() and (scores > LOW).all() and (scores <= 1).all()
        assert set(labels) <= {1, 2, 3}
        assert (boxes.dtype, labels.dtype, scores.dtype) == (np.float32, np.int64, np.float32)


@pytest.mark.parametrize("squash", [False, True])
def test_boxes_are_in_pixels_of_the_image(predictors, images, squash):
    """A Predictor step by step: what it finds on the input, scaled by hand."""
    predictor = predictors[squash]
    for image in images[:4]:
        height, width = image.shape[:2]
        shape = input_shape(height, width, 128, squash)
        fitted, _ = fit(image, 128, squash, shape)
        with torch.no_grad():
            logits, codes = predictor.detector(torch.from_numpy(fitted).permute(2, 0, 1)[None])
        boxes, labels, scores = select(logits[0], codes[0], predictor.detector.grid(*shape), LOW)
        pixels = boxes.numpy() * np.tile(shape[::-1], 2)
        sides = shape if squash else [max(1, round(side * 128 / max(height, width))) for side in (height, width)]
        scale = sides[1] / width, sides[0] / height
        expected = (pixels / np.tile(scale, 2)).clip(0, [width, height] * 2)
        visible = (expected[:, 2:] > expected[:, :2]).all(axis=1)
        found = predictor(image)
        assert np.allclose(found.boxes, expected[visible], atol=1e-3 * max(height, width))
        assert np.allclose(found.scores, scores.numpy()[visible], atol=1e-5)
        assert found.labels.tolist() == labels.numpy()[visible].tolist()


@pytest.mark.parametrize("squash", [False, True])
def test_a_batch_equals_one_by_one(predictors, images, squash):
    together = predictors[squash].batch(images)
    assert len(together) == len(images)
    assert all(same(found, predictors[squash](image)) for found, image in zip(together, images, strict=True))
    assert predictors[squash].batch([]) == []


@pytest.mark.parametrize("size, threads", [(1, 1), (2, 3), (4, 1)])
def test_a_batch_of_any_size_keeps_few_images_in_memory(predictors, images, monkeypatch, size, threads):
    """Neither the network nor the memory gets more than `batch_size` images, however long the list is."""
    predictor, taken, seen = copy.copy(predictors[False]), [], []
    predictor.batch_size = size
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    network = predictor.detector.forward
    monkeypatch.setattr(
        predictor.detector, "forward", lambda batch: seen.append((len(batch), len(taken))) or network(batch)
    )
    together = predictor.batch(taken.append(0) or image for image in images)
    assert max(count for count, _ in seen) <= size and seen[0][1] <= size
    monkeypatch.undo()
    assert all(same(found, predictors[False](image)) for found, image in zip(together, images, strict=True))


def test_every_kind_of_image(predictors, images, tmp_path):
    predictor, expected = predictors[False], predictors[False].batch(images[:3])
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for image, path in zip(images, paths, strict=False):
        Image.fromarray(image).save(path)
    (tmp_path / "notes.txt").touch()
    for kind in (paths, [str(path) for path in paths], [Image.open(path) for path in paths], images[:3]):
        assert all(same(a, b) for a, b in zip(predictor.batch(kind), expected, strict=True))
        assert same(predictor(kind[0]), expected[0])
    found = predictor.folder(tmp_path)
    assert list(found) == paths and all(same(a, b) for a, b in zip(found.values(), expected, strict=True))


def test_a_turned_pil_image_is_set_upright(predictors, images, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(images[0])).save(tmp_path / "a.png", exif=exif)
    assert same(predictors[False](Image.open(tmp_path / "a.png")), predictors[False](images[0]))


def test_options_of_a_call(predictors, images):
    predictor, image = predictors[False], images[0]
    everything, fewer = predictor(image), predictor(image, threshold=0.5)
    assert 0 < len(fewer.scores) < len(everything.scores) and (fewer.scores > 0.5).all()
    assert len(predictor(image, iou_threshold=0.2).scores) < len(everything.scores)
    assert 0 < len(predictor(image, max_detections=3).scores) <= 3
    assert len(predictor(image, class_agnostic=False).scores) >= len(everything.scores)


def test_thresholds_of_zero_and_none(predictors, images):
    predictor, image = predictors[False], images[0]
    everything = Predictor(predictor.detector, "cpu", threshold=0.0)
    assert everything.threshold == 0.0 and same(everything(image), predictor(image, threshold=0.0))
    assert everything(image).scores.min() < LOW
    assert same(predictor(image, threshold=None, iou_threshold=None), predictor(image))


@pytest.mark.parametrize("wrong", [-1, 2, float("nan"), "high", [0.5]])
def test_options_out_of_range_are_refused(predictors, images, wrong):
    for name in ("threshold", "iou_threshold"):
        with pytest.raises(ValueError, match=f"{name} is .*from 0 to 1"):
            predictors[False](images[0], **{name: wrong})
    with pytest.raises(ValueError, match="threshold is .*from 0 to 1"):
        Predictor(predictors[False].detector, "cpu", threshold=wrong)


@pytest.mark.parametrize("name", ["max_detections", "top_k"])
def test_counts_below_one_are_refused(predictors, images, name):
    with pytest.raises(ValueError, match=f"{name} is -1: it must be at least 1"):
        predictors[False](images[0], **{name: -1})


@pytest.mark.parametrize(
    "wrong, hint",
    [
        (None, "None is no image: cv2.imread"),
        ([np.zeros((8, 8, 3), np.uint8)], "a list is no image: `batch`"),
        (b"\xff\xd8", "bytes is no image: pass Image.open"),
        (torch.zeros(3, 8, 8), "a Tensor is no image: pass an"),
        (5, "a int is no image: pass an"),
    ],
    ids=["None", "list", "bytes", "Tensor", "int"],
)
def test_what_is_no_image_is_named_with_what_to_pass(predictors, wrong, hint):
    for call in (lambda: predictors[False](wrong), lambda: predictors[False].batch([wrong, wrong])):
        with pytest.raises(TypeError, match=hint):
            call()


@pytest.mark.parametrize("cuda, mps, best", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")])
def test_the_best_device_is_taken(monkeypatch, cuda, mps, best):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(torch, "zeros", lambda size, device: 0.0)
    assert best_device().type == best and best_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["meta", "warp", "cuda:99", ""])
def test_devices_that_do_not_compute_are_refused(predictors, name):
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here: " + ".{10,250}$"):
        Predictor(predictors[False].detector, name)


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        np.zeros((1, 8, 8, 3), np.uint8),
    ],
    ids=lambda wrong: f"{wrong.shape} {wrong.dtype}",
)
def test_wrong_arrays_are_refused(predictors, wrong):
    with pytest.raises(ValueError, match="uint8 RGB"):
        predictors[False](wrong)


def test_files_that_are_no_images_are_refused(predictors, tmp_path):
    (tmp_path / "a.jpg").write_text("text")
    for wrong in (tmp_path / "a.jpg", tmp_path / "missing.jpg"):
        with pytest.raises(InputError):
            predictors[False](wrong)
    with pytest.raises(InputError):
        predictors[False].folder(tmp_path / "nothing")


def test_arrays_that_are_views_are_fine(predictors, images):
    mirrored = images[0][:, ::-1]
    assert as_array(mirrored) is mirrored
    assert same(predictors[False](mirrored), predictors[False](mirrored.copy()))


def test_what_lies_in_the_border_is_left_out():
    _, placement = fit(np.zeros((32, 64, 3), np.uint8), 64)  # the lower half of the input is border
    boxes = torch.tensor([[0.0, 0.1, 0.5, 0.9], [0.1, 0.6, 0.5, 0.9]])
    found = to_detections(boxes, torch.tensor([1, 2]), torch.tensor([0.9, 0.8]), placement, (32, 64))
    assert found.labels.tolist() == [1] and np.allclose(found.boxes, [[0, 6.4, 32, 32]])
