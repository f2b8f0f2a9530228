"""Protects tiling: tiles that cover the image, each object found once, bounded memory, and without tiles the plain
predictor's answers. The merge has tests of its own, in test_merging.py."""

import json
import subprocess
import sys

import av
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou
from trainings import run

from odutils import inference, progress, tiling
from odutils.datasets import CocoDetections
from odutils.evaluation import predict
from odutils.files import DATA
from odutils.images import list_images, read_image
from odutils.inference import Predictor
from odutils.onnx_detector import DecodedBoxes
from odutils.presets import DEFAULT_WEIGHTS, load_detector
from odutils.settings import Settings
from odutils.tiling import OVERLAP, SMALLEST, place_views

PHOTOS = DATA / "photos"
AUTO = "auto"


# ---- where tiles lie


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.one_of(st.integers(1, 12), st.just(AUTO)),
    st.sampled_from([128, 416, 640]),
)
def test_tiles_cover_the_image_inside_it_all_of_one_size(height, width, tiles, size):
    whole, *placed = place_views(height, width, tiles, size).tolist()
    assert whole == [0, 0, width, height]
    longer, shorter = max(height, width), min(height, width)
    lefts, tops = (sorted({tile[axis] for tile in placed}) for axis in (0, 1))
    if not placed:
        assert tiles == 1 or longer <= (size if tiles == AUTO else longer) or longer < (0.8 * 2 + 0.2) * SMALLEST
        return
    across, down = placed[0][2] - placed[0][0], placed[0][3] - placed[0][1]
    assert placed == [[left, top, left + across, top + down] for top in tops for left in lefts]
    for starts, side, length in ((lefts, across, width), (tops, down, height)):
        assert starts[0] == 0 and starts[-1] + side == length
        shared = side - np.diff(starts)
        assert (np.abs(shared - OVERLAP * side) <= 2).all()
    along = len(lefts) if width >= height else len(tops)
    if tiles == AUTO:
        assert max(across, down) <= size < 1.01 * tiling.tile_side(longer, along - 1)  # one tile less does not do
    elif tiles * 0.8 * SMALLEST < longer - SMALLEST:
        assert along == tiles
    longer_side, shorter_side = max(across, down), min(across, down)
    assert longer_side == (across if width >= height else down) and shorter_side >= min(shorter, 0.5 * longer_side)


@pytest.mark.parametrize(
    "height, width, tiles, count",
    [(960, 1280, 1, 1), (960, 1280, 2, 5), (960, 1280, 3, 10), (960, 1280, AUTO, 13), (400, 416, AUTO, 1)]
    + [(960, 960, 3, 10), (1280, 960, 3, 10), (300, 1600, 3, 4), (1, 1, 4, 1), (40, 40, 8, 1)],
)
def test_how_many_views_an_image_has(height, width, tiles, count):
    assert len(place_views(height, width, tiles, 416)) == count


def test_rounding_makes_no_tile_larger_and_none_fewer():
    """Where so many tiles cover a length exactly: 10 of 320 px are 320 × (10 × 0.8 + 0.2) px long."""
    for side in range(SMALLEST, 700, 3):
        for count in range(2, 60):
            length, rest = divmod(side * (4 * count + 1), 5)
            if not rest:
                for tiles, size in ((AUTO, side), (count, 9999)):
                    placed = place_views(10, length, tiles, size)[1:]
                    assert len(placed) == count and (placed[:, 2] - placed[:, 0] == side).all()


# ---- the predictor with tiles


class ColourDetector:
    """In a detector's place: reports the visible part of every rectangle of a known colour, if it is large enough.

    score: "falls" or "rises" with the side on the input, so that either pieces or whole objects have the better scores.
    """

    def __init__(self, labels, size=256, smallest=8, score="rises", squash=False):
        self.labels, self.smallest, self.score = labels, smallest, score  # labels: {(r, g, b): label}
        self.settings = Settings("pyramid", ("a", "b", "c"), size, squash)
        self.batches = []

    def __call__(self, images):
        height, width = images.shape[2:]
        self.batches.append(len(images))
        logits = torch.full((len(images), len(self.labels), 3), -20.0)
        boxes = torch.zeros(len(images), len(self.labels), 4)
        for number, image in enumerate(images):
            for index, (colour, label) in enumerate(self.labels.items()):
                mask = (image.int() - torch.tensor(colour)[:, None, None]).abs().amax(dim=0) <= 3
                rows, columns = mask.nonzero(as_tuple=True)
                if len(rows):
                    box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
                    side = int(min(box[2] - box[0], box[3] - box[1]))
                    share = side / max(images.shape[2:])
                    if side >= self.smallest:
                        value = 0.5 + 0.4 * (share if self.score == "rises" else 1 - share)
                        logits[number, index, label - 1] = torch.tensor(value).logit()
                        boxes[number, index] = torch.tensor(box) / torch.tensor([width, height] * 2)
        return logits, boxes

    def grid(self, height, width):
        return DecodedBoxes()

    def to(self, device):
        return self

    def eval(self):
        return self


def scene(seed, height=900, width=1200, count=14):
    """Rectangles of any size beside each other, three classes: image, boxes (count, 4), {colour: label}."""
    chance = np.random.default_rng(seed)
    image, boxes = np.full((height, width, 3), 114, np.uint8), []
    while len(boxes) < count:
        sides = np.exp(chance.uniform(np.log(28), np.log(450), 2))
        left, top = (chance.random(2) * (np.array([width, height]) - sides)).astype(int)
        box = [left, top, int(left + sides[0]), int(top + sides[1])]
        if box[2] <= width and box[3] <= height and not any(overlap([box], boxes)[0]):
            boxes.append(box)
    colours = [(30 + 12 * index, 240 - 16 * index, (index * 90) % 250) for index in range(count)]
    for box, colour in zip(boxes, colours, strict=True):
        image[box[1] : box[3], box[0] : box[2]] = colour
    return image, np.array(boxes), {colour: 1 + index % 3 for index, colour in enumerate(colours)}


def overlap(boxes, others):
    """IoU of each pair."""
    return box_iou(
        *(torch.tensor(np.array(some), dtype=torch.float64).reshape(-1, 4) for some in (boxes, others))
    ).numpy()


def match(found, boxes, labels, least):
    """Whether there is exactly one detection for each object, and none besides."""
    same = (overlap(found.boxes, boxes) > least) & (found.labels[:, None] == np.array(list(labels)))
    return same.shape[0] == same.shape[1] and (same.sum(axis=0) == 1).all() and (same.sum(axis=1) == 1).all()


@pytest.mark.parametrize("tiles", [2, 3, 4, AUTO])
@pytest.mark.parametrize("score", ["rises", "falls"])
@pytest.mark.parametrize("seed", range(4))
def test_as_many_objects_come_out_as_are_in_the_image(tiles, score, seed):
    image, boxes, labels = scene(seed)
    detector = ColourDetector(labels, score=score)
    found = Predictor(detector, "cpu", tiles=tiles)(image)
    assert match(found, boxes, labels.values(), 0.6)
    assert max(detector.batches) <= 8 and sum(detector.batches) == len(place_views(*image.shape[:2], tiles, 256))


@pytest.mark.parametrize("squash", [True, False])
def test_an_object_that_the_whole_image_is_too_small_for(squash):
    """Long and thin, across all tiles of a row, and a cross of two at a corner; only tiles show them."""
    image = np.full((1000, 1000, 3), 114, np.uint8)
    long, small = (10, 200, 200), (200, 20, 200)
    image[495:515, 50:950] = long
    image[300:316, 488:508] = small
    detector = ColourDetector({long: 1, small: 2}, squash=squash)
    boxes = [[50, 495, 950, 515], [488, 300, 508, 316]]
    assert len(Predictor(detector, "cpu")(image).labels) == 0
    for tiles in (3, 4, AUTO):
        assert match(Predictor(detector, "cpu", tiles=tiles)(image), boxes, [1, 2], 0.6)


def test_several_images_are_as_each_alone():
    scenes = [scene(5), scene(6, 300, 200, 3), scene(7, 100, 120, 1), scene(8, 400, 900, 5)]
    labels = {colour: label for _, _, own in scenes for colour, label in own.items()}
    detector = ColourDetector(labels)
    for tiles in (2, AUTO):
        predictor = Predictor(detector, "cpu", tiles=tiles)
        predictor.batch_size = 5
        detector.batches.clear()
        together = predictor.batch(image for image, *_ in scenes)
        views = sum(len(place_views(*image.shape[:2], tiles, 256)) for image, *_ in scenes)
        assert sum(detector.batches) == views and max(detector.batches) <= 5 and len(together) == 4
        for found, (image, *_) in zip(together, scenes, strict=True):
            for one, alone in zip(found, predictor(image), strict=True):
                assert np.array_equal(one, alone)
    assert predictor.batch([]) == []


@pytest.fixture(scope="module")
def detector():
    return load_detector(DEFAULT_WEIGHTS)


def equal(found, other):
    return all(np.array_equal(one, two) for one, two in zip(found, other, strict=True))


@pytest.fixture(scope="module")
def onnx_file(detector, tmp_path_factory):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from odutils.onnx_export import export

    return export(detector, tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.mark.parametrize("kind", ["plain", "onnx"])
def test_one_tile_is_the_plain_predictor(detector, kind, request):
    """Bit for bit; and "auto" is, for an image that is no larger than the input."""
    weights = None if kind == "plain" else request.getfixturevalue("onnx_file")
    plain, one, auto = (Predictor.from_weights(weights, "cpu", **more) for more in ({}, {"tiles": 1}, {"tiles": AUTO}))
    assert (plain.tiles, one.tiles, auto.tiles) == (1, 1, AUTO)
    images = [read_image(path)[:300, :400] for path in list_images(PHOTOS)[3:7]]
    expected = plain.batch(images, threshold=0.2)
    assert sum(len(found.labels) for found in expected) > 5
    for predictor in (one, auto):
        found = predictor.batch(images, threshold=0.2)
        assert all(equal(*pair) for pair in zip(found, expected, strict=True))
        assert equal(predictor(images[0], max_detections=1), plain(images[0], max_detections=1))


def test_an_onnx_file_finds_the_same_in_tiles(detector, onnx_file):
    image = read_image(PHOTOS / "cows.jpg")
    eager, exported = Predictor(detector, "cpu", tiles=2)(image), Predictor.from_weights(onnx_file, tiles=2)(image)
    assert len(eager.labels) and eager.labels.tolist() == exported.labels.tolist()
    assert np.allclose(eager.boxes, exported.boxes, atol=1)


def test_tiles_find_small_objects_that_the_plain_predictor_misses(detector):
    """Photographs pasted small onto a large image, of which the network sees a quarter of the pixels' sides."""
    predictor = Predictor(detector, "cpu")
    canvas, wanted, names = np.full((1200, 1600, 3), 114, np.uint8), [], []
    photographs = ("cows", "kitten", "astronaut", "dogs_at_window", "horses", "giraffes", "shepherd", "cyclist")
    for number, name in enumerate(photographs):
        image = read_image(PHOTOS / f"{name}.jpg")
        scale = 240 / max(image.shape[:2])
        small = inference.fit(image, 240, shape=(round(image.shape[0] * scale), round(image.shape[1] * scale)))[0]
        left, top = 60 + 400 * (number % 4), 200 + 500 * (number // 4)
        canvas[top : top + small.shape[0], left : left + small.shape[1]] = small
        boxes, labels, _ = predictor(image, threshold=0.6)
        wanted += (boxes * scale + [left, top] * 2).tolist()
        names += labels.tolist()

    def recall():
        boxes, labels, _ = predictor(canvas)
        same = (overlap(wanted, boxes) > 0.5) & (np.array(names)[:, None] == labels)
        return same.any(axis=1).sum()

    assert len(wanted) >= 10
    without, predictor.tiles = recall(), 3
    found = recall()
    assert found >= 2 * without and found >= len(wanted) / 2


@pytest.mark.parametrize("wrong", [0, -1, 2.0, 1.5, "2", "all", None, [2]])
def test_other_numbers_of_tiles_are_refused(wrong):
    detector = ColourDetector({(0, 0, 0): 1})
    with pytest.raises(ValueError, match="tiles is .*at least 1, or 'auto'"):
        Predictor(detector, "cpu", tiles=wrong)
    predictor = Predictor(detector, "cpu")
    predictor.tiles = wrong
    with pytest.raises(ValueError, match="tiles is .*at least 1, or 'auto'"):
        predictor(np.zeros((100, 100, 3), np.uint8))


def test_other_options_are_checked_and_reach_the_merge():
    image, _, labels = scene(1)
    predictor = Predictor(ColourDetector(labels), "cpu", tiles=2)
    for options in ({"threshold": 2}, {"iou_threshold": -1}, {"max_detections": 0}, {"top_k": 0}):
        with pytest.raises(ValueError, match=f"{next(iter(options))} is "):
            predictor(image, **options)
    everything = predictor(image)
    assert len(everything.labels) == 14
    assert equal(predictor(image, max_detections=3), [column[:3] for column in everything])
    assert (predictor(image, threshold=0.55).scores > 0.55).all()
    with pytest.raises(TypeError, match="None is no image"):
        predictor(None)


def test_fewer_detections_are_the_best_of_all():
    """The whole image gives one object its box, and a tile its score, the highest: neither may crowd out the other."""
    image = np.full((100, 180, 3), 114, np.uint8)
    predictor = Predictor(ColourDetector({(0, 0, 0): 1}, size=128), "cpu", tiles=2)
    seen = {
        180: [([10, 10, 60, 90], 0.7), ([70, 10, 170, 90], 0.5)],  # the whole image
        100: [([70, 10, 100, 90], 0.9)],  # each tile: the left one sees a piece of the second object
    }

    def detect(views, run, options):
        found = []
        for view in views:
            width = view.window[2] - view.window[0]
            some = sorted(seen[width] if view.window[0] == 0 else [], key=lambda one: -one[1])
            some = some[: options["max_detections"]]
            boxes, scores = np.float32([one[0] for one in some]).reshape(-1, 4), np.float32([one[1] for one in some])
            found.append(inference.Detections(boxes, np.ones(len(some), np.int64), scores))
        return found

    predictor._detect = detect
    everything = predictor(image)
    assert everything.boxes.tolist() == [[70, 10, 170, 90], [10, 10, 60, 90]]
    assert equal(predictor(image, max_detections=1), [column[:1] for column in everything])


# ---- memory

MEASURE = """
import resource, sys
import numpy as np, torch
from test_tiling import ColourDetector, AUTO
from odutils.inference import Predictor
torch.set_num_threads(1)
block = np.full((500, 500, 3), 114, np.uint8)
block[100:140, 200:260] = (10, 200, 200)
image = np.tile(block, (16, 25, 1))
predictor = Predictor(ColourDetector({(10, 200, 200): 1}, size=416), "cpu", tiles=TILES)
predictor(block)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = predictor(image, max_detections=1000)
print(image.nbytes, 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before), len(found.labels))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is counted otherwise")
@pytest.mark.parametrize("tiles, limit", [(2, 300e6), (AUTO, 100e6)])
def test_a_hundred_megapixels_need_little_more_memory_than_the_image(tiles, limit):
    """At a low number of tiles one of them is copied as it is fitted; the network gets batches of eight."""
    script = MEASURE.replace("TILES", repr(tiles))
    ran = subprocess.run([sys.executable, "-c", script], cwd=DATA.parent / "tests", capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    image, more, _ = map(int, ran.stdout.split())
    assert image == 3 * 12_500 * 8_000 and more < limit


# ---- the command line


@pytest.fixture
def photo(tmp_path):
    """A small copy of a photograph, in a folder of its own."""
    from odutils.drawing import write_image

    path = tmp_path / "in" / "cows.jpg"
    write_image(path, inference.fit(read_image(PHOTOS / "cows.jpg"), 200, shape=(150, 200))[0])
    return path


@pytest.mark.parametrize("tiles", [2, AUTO])
def test_detect_with_tiles(photo, tmp_path, tiles):
    found = tmp_path / "found.json"
    options = ("--tiles", tiles, "--size", 128, "--threshold", 0.1, "--device", "cpu")
    assert run("detect", photo, "--out", tmp_path / "out", "--json", found, *options) == 0
    predictor = Predictor.from_weights(device="cpu", tiles=tiles)
    predictor.size = 128
    expected = predictor(photo, threshold=0.1)
    written = json.loads(found.read_text())["annotations"]
    assert len(expected.labels) and np.allclose([one["score"] for one in written], expected.scores, atol=1e-6)


def test_evaluate_with_tiles(write_dataset, tmp_path, capsys):
    data = write_dataset(tmp_path / "data", [[{"bbox": [5, 5, 30, 20], "category_id": 1}]] * 3, {1: "person"}, "val")
    options = ("--size", 64, "--tiles", 2, "--device", "cpu")
    assert run("evaluate", "--data", data, *options) == 0
    assert "3 images" in capsys.readouterr().out


@pytest.mark.parametrize("options", [("--tiles", 2), ("--tiles", AUTO), ("--size", 64)])
def test_results_are_scored_as_they_are(options, tmp_path, capfd):
    assert run("evaluate", "--data", tmp_path, "--results", tmp_path / "results.json", *options) == 2
    assert "leave out --tiles and --size" in capfd.readouterr().err


def test_video_with_tiles_keeps_its_frames(tmp_path):
    target = tmp_path / "out.mp4"
    options = ("--tiles", 2, "--size", 64, "--limit", 6, "--device", "cpu")
    assert run("video", DATA / "clip.mp4", "--out", target, *options) == 0
    with av.open(str(target)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6


@pytest.mark.parametrize("command", ["detect a.jpg", "video a.mp4", "evaluate --data d"])
@pytest.mark.parametrize(
    "wrong, said", [("0", "at least 1"), ("x", "neither a whole number nor auto"), ("-2", "--tiles")]
)
def test_wrong_numbers_of_tiles_on_the_command_line(command, wrong, said, capfd):
    assert run(*command.split(), "--tiles", wrong) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("odutils: argument --tiles: ") and said in line


@pytest.mark.parametrize("command", ["detect", "video", "evaluate"])
def test_a_detector_of_squashed_images_has_one_size(command, photo, write_dataset, tmp_path, capfd, monkeypatch):
    squashing = Predictor(ColourDetector({(0, 0, 0): 1}, squash=True), "cpu")
    monkeypatch.setattr(Predictor, "from_weights", lambda *_: squashing)
    data = write_dataset(tmp_path / "data", [[]], {1: "person"}, "val")
    what = {"detect": [photo, "--out", tmp_path / "out"], "video": [DATA / "clip.mp4"], "evaluate": ["--data", data]}
    assert run(command, *what[command], "--size", 128) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line == "odutils: --size 128: a detector of squashed images has one size, 256 px"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_for_many_tiles_is_for_terminals(terminal, photo, tmp_path, capsys, monkeypatch):
    """It stands below the bar of the images, and is gone before the lines of the image are printed."""
    monkeypatch.setattr(inference, "MANY_TILES", 3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    options = ("--tiles", 2, "--size", 64, "--threshold", 0.05, "--device", "cpu")
    assert run("detect", photo, "--out", tmp_path / "out", *options) == 0
    captured = capsys.readouterr()
    assert (" tiles/s" in captured.err) == ("1/1" in captured.err) == terminal
    assert " tiles/s" not in captured.out and captured.out.splitlines()[1].startswith(str(photo))


def test_evaluation_shows_the_tiles_of_large_images(write_dataset, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(inference, "MANY_TILES", 3)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    data = write_dataset(tmp_path / "data", [[]], {1: "person"}, "val")
    dataset = CocoDetections(data, "val", classes=("person",))
    predictor = Predictor(ColourDetector({(0, 0, 0): 1}, size=64), "cpu", tiles=2)
    for progress_bar in (False, True):
        predict(predictor, dataset, progress=progress_bar)
        assert (" tiles/s" in capsys.readouterr().err) == progress_bar


def test_few_tiles_and_other_callers_get_no_bar(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    predictor = Predictor(ColourDetector({(0, 0, 0): 1}, size=64), "cpu", tiles=2)
    image = np.zeros((2000, 2000, 3), np.uint8)
    predictor(image, progress=True)
    predictor.tiles = 10
    predictor(image)
    assert capsys.readouterr().err == ""
    predictor(image, progress=True)
    assert "tiles" in capsys.readouterr().err


def test_a_bar_that_does_not_stay(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(progress.bar(range(3), leave=False)) == [0, 1, 2]
    assert capsys.readouterr().err.endswith("\r")
