"""Protects the sample data set, which stands in for COCO in every notebook and in many tests: labels that are exact,
the same bytes for the same seed, a layout that pycocotools reads, and no folder of the reader's ever lost."""

import json
import pickle
from contextlib import redirect_stdout
from io import StringIO

import cv2
import numpy as np
import pytest
from numpy.random import default_rng
from pycocotools.coco import COCO

from odutils.classes import CATEGORY_IDS, CLASSES
from odutils.errors import InputError
from odutils.sample import scenes
from odutils.sample.backgrounds import PAINTERS
from odutils.sample.make import make_sample
from odutils.sample.scenes import LARGEST, LEAST_VISIBLE, SMALLEST, draw_scene, load_sprites


@pytest.fixture(scope="module")
def sprites():
    return load_sprites()


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("made") / "sample", images=(12, 5), size=128, seed=3)


def files_of(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_sprites_are_whole_and_of_many_classes(sprites):
    assert len(sprites) == 139 and len({sprite.label for sprite in sprites}) == 67
    for sprite in sprites:
        alpha = sprite.pixels[..., 3]
        assert (sprite.pixels[..., :3] <= alpha[..., None]).all()  # multiplied by alpha
        assert alpha[0].any() and alpha[-1].any() and alpha[:, 0].any() and alpha[:, -1].any()  # cropped


def test_scenes_can_be_drawn_in_other_processes(sprites):
    """Whatever starts them, fork or spawn: what goes in and what comes out can be pickled."""
    drawn = draw_scene(default_rng(1), pickle.loads(pickle.dumps(sprites)), size=96)
    again = pickle.loads(pickle.dumps(draw_scene(default_rng(1), sprites, size=96)))
    assert all(np.array_equal(one, other) for one, other in zip(drawn, again, strict=True))


def test_labels_are_what_can_be_seen_in_the_image(sprites, monkeypatch):
    """Found again from the images alone: each object painted in a colour of its own, without light and shadow."""
    monkeypatch.setattr(scenes, "_cast_shadow", lambda canvas, alpha, flat: None)
    for seed in range(20):
        natural = draw_scene(default_rng(seed), sprites, size=200, objects=(4, 8))
        colours = {}

        def flat_place(*arguments, colours=colours, place=scenes._place, **keywords):
            item = place(*arguments, **keywords)
            colour = (len(colours) + 1) * 20
            colours[colour] = item.label
            solid = item.layer[..., 3] > 127
            item.layer[...] = solid[..., None] * np.uint8([colour, colour, colour, 255])
            return item

        with monkeypatch.context() as patched:
            patched.setattr(scenes, "_place", flat_place)
            patched.setattr(scenes, "paint_background", black_background)
            flat = draw_scene(default_rng(seed), sprites, size=200, objects=(4, 8)).image[..., 0]
        expected = {}
        for colour in set(np.unique(flat).tolist()) - {0}:
            rows, columns = np.nonzero(flat == colour)
            box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
            expected[tuple(map(int, box))] = (colours[colour], len(rows))
        boxes = [tuple(box) for box in natural.boxes.tolist()]
        areas = natural.masks.sum(axis=(1, 2)).tolist()
        assert dict(zip(boxes, zip(natural.labels.tolist(), areas, strict=True), strict=True)) == expected


def black_background(rng, height, width, paint=scenes.paint_background):
    image, horizon = paint(rng, height, width)  # takes the same random numbers
    return np.zeros_like(image), horizon


def test_no_pixel_belongs_to_two_objects_and_boxes_lie_inside(sprites):
    for seed in range(30):
        scene = draw_scene(default_rng(seed), sprites, size=160, objects=(1, 8))
        height, width = scene.image.shape[:2]
        assert scene.image.dtype == np.uint8 and max(height, width) == 160 and scene.masks.shape[1:] == (height, width)
        assert scene.masks.sum(axis=0).max(initial=0) <= 1
        assert len(scene.boxes) == len(scene.labels) == len(scene.masks) <= 8
        assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, 2:] <= [width, height]).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()


def test_what_would_hardly_be_seen_is_not_drawn(sprites, monkeypatch):
    placed = []

    def recording(*arguments, place=scenes._place, **keywords):
        placed.append(place(*arguments, **keywords))
        return placed[-1]

    monkeypatch.setattr(scenes, "_place", recording)
    left_out = 0
    for seed in range(40):
        placed.clear()
        scene = draw_scene(default_rng(seed), sprites, size=160, objects=(8, 8))
        left_out += len(placed) - len(scene.labels)
        for mask, label in zip(scene.masks, scene.labels, strict=True):
            shares = [mask.sum() / item.silhouette for item in placed if item.label == label]
            assert max(shares) >= LEAST_VISIBLE
    assert 0 < left_out < 200  # of 320: overlaps happen, and most objects survive them


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_what_stands_lower_is_in_front(monkeypatch, order):
    """Two squares of 40 pixels by hand: one from (40, 60), the other nearer, from (60, 80)."""
    squares = []
    for label, (left, top) in enumerate(((40, 60), (60, 80)), start=1):
        layer = np.zeros((160, 160, 4), np.uint8)
        layer[top : top + 40, left : left + 40] = (100 * label, 0, 0, 255)
        squares.append(scenes.Placed(label, layer, 1600.0, top + 40.0))
    queue = [squares[index] for index in order]
    monkeypatch.setattr(scenes, "_place", lambda *arguments, **keywords: queue.pop(0))
    monkeypatch.setattr(scenes, "paint_background", lambda *_: (np.full((160, 160, 3), 128, np.float32), 50))
    monkeypatch.setattr(scenes, "SHAPES", ((1.0, 1.0),))
    scene = draw_scene(default_rng(0), [], size=160, objects=(2, 2))
    assert scene.labels.tolist() == [2, 1]  # from the nearest to the farthest
    assert scene.boxes.tolist() == [[60, 80, 100, 120], [40, 60, 80, 100]]
    assert scene.masks.sum(axis=(1, 2)).tolist() == [1600, 1600 - 400]
    assert (scene.image[scene.masks[0]] == (200, 0, 0)).all() and (scene.image[65, 45] == (100, 0, 0)).all()


def test_sizes_span_the_range(sprites):
    shares = []
    for seed in range(250):
        scene = draw_scene(default_rng(seed), sprites, size=160, objects=(2, 3))
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1)
        shares.extend(sides / min(scene.image.shape[:2]))
    assert max(shares) <= LARGEST * 1.3  # a turned sprite is wider
    assert min(shares) < SMALLEST * 1.6
    counts = np.histogram(shares, bins=[0, 0.1, 0.2, 0.4, 1.0])[0]
    assert counts.min() > 0.08 * len(shares)


@pytest.mark.parametrize("painter", dict.fromkeys(PAINTERS), ids=lambda painter: painter.__name__)
def test_backgrounds(painter):
    for seed in range(8):
        image, horizon = painter(default_rng(seed), 90, 120)
        again, _ = painter(default_rng(seed), 90, 120)
        other, _ = painter(default_rng(seed + 100), 90, 120)
        assert image.shape == (90, 120, 3) and image.dtype == np.float32 and np.isfinite(image).all()
        assert (image == again).all() and np.abs(image - other).mean() > 1
        assert image.min() > -30 and image.max() < 290  # up to the noise that is cut off afterwards
        assert horizon is None or 0 < horizon < 90


def test_same_seed_same_bytes_and_another_seed_other_images(sample, tmp_path):
    again = make_sample(tmp_path / "again", images=(12, 5), size=128, seed=3)
    assert files_of(again) == files_of(sample)
    other = files_of(make_sample(tmp_path / "other", images=(12, 5), size=128, seed=4))
    assert other.keys() == files_of(sample).keys()
    assert all(other[name] != content for name, content in files_of(sample).items())


def test_a_larger_sample_begins_with_the_smaller_one(sample, tmp_path):
    larger = files_of(make_sample(tmp_path / "larger", images=(14, 5), size=128, seed=3))
    assert all(larger[name] == content for name, content in files_of(sample).items() if name.endswith(".jpg"))


def test_splits_differ(sample):
    images = [content for name, content in files_of(sample).items() if name.endswith(".jpg")]
    assert len(images) == len(set(images)) == 17


def test_pycocotools_reads_it(sample):
    for split, count in (("train", 12), ("val", 5)):
        with redirect_stdout(StringIO()):
            coco = COCO(str(sample / "annotations" / f"instances_{split}.json"))
        categories = coco.loadCats(coco.getCatIds())
        assert [(entry["id"], entry["name"]) for entry in categories] == list(zip(CATEGORY_IDS, CLASSES, strict=True))
        assert len(coco.getImgIds()) == count == len(list((sample / split).iterdir()))
        for image in coco.loadImgs(coco.getImgIds()):
            pixels = cv2.imread(str(sample / split / image["file_name"]))
            assert pixels.shape == (image["height"], image["width"], 3)
        for annotation in coco.loadAnns(coco.getAnnIds()):
            x, y, width, height = annotation["bbox"]
            image = coco.imgs[annotation["image_id"]]
            assert 0 <= x < x + width <= image["width"] and 0 <= y < y + height <= image["height"]
            assert 0 < annotation["area"] <= width * height and annotation["iscrowd"] == 0


def test_annotations_are_the_scenes(sample, sprites):
    """Written labels against scenes drawn anew: seed, split and index say which."""
    content = json.loads((sample / "annotations" / "instances_val.json").read_text())
    for index, image in enumerate(content["images"]):
        scene = draw_scene(default_rng([3, 1, index]), sprites, size=128)
        found = [entry for entry in content["annotations"] if entry["image_id"] == image["id"]]
        boxes = np.array([entry["bbox"] for entry in found])
        boxes[:, 2:] += boxes[:, :2]
        assert (boxes == scene.boxes).all()
        assert [CATEGORY_IDS.index(entry["category_id"]) + 1 for entry in found] == scene.labels.tolist()
        written = cv2.imread(str(sample / "val" / image["file_name"]))[..., ::-1]
        assert np.abs(written.astype(int) - scene.image).mean() < 6  # JPEG


def test_one_number_is_divided_and_a_split_may_be_empty(tmp_path):
    root = make_sample(tmp_path / "sum", images=5, size=64)
    assert len(list((root / "train").iterdir())) == 4 and len(list((root / "val").iterdir())) == 1
    root = make_sample(tmp_path / "one", images=(2, 0), size=64)
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "train"]


def test_a_sample_is_kept_or_replaced(tmp_path):
    root = make_sample(tmp_path / "sample", images=(2, 1), size=64)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    make_sample(root, images=(2, 1), size=64)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    (root / "train" / "000001.jpg").unlink()  # incomplete: drawn again
    make_sample(root, images=(2, 1), size=64)
    assert (root / "train" / "000001.jpg").exists()
    make_sample(root, images=(1, 1), size=64)
    assert len(list((root / "train").iterdir())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["sample"]


@pytest.mark.parametrize("name", ["holiday.jpg", "train/000099.jpg", "annotations/instances_train.json"])
def test_a_folder_with_something_else_is_refused(tmp_path, name):
    root = make_sample(tmp_path / "sample", images=(2, 1), size=64)
    (root / name).write_text('{"info": {"description": "mine"}, "images": []}')
    before = files_of(root)
    with pytest.raises(InputError, match="no part of a sample"):
        make_sample(root, images=(3, 1), size=64)
    assert files_of(root) == before and [path.name for path in tmp_path.iterdir()] == ["sample"]


def test_an_empty_folder_is_filled_and_a_file_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert (make_sample(tmp_path / "empty", images=1, size=64) / "train" / "000001.jpg").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        make_sample(tmp_path / "file", images=1, size=64)


def test_nothing_half_done_remains(tmp_path, monkeypatch):
    monkeypatch.setattr("odutils.sample.make.draw_scene", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_sample(tmp_path / "sample", images=2, size=64)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [{"images": 0}, {"images": (-1, 3)}, {"size": 8}, {"objects": (0, 3)}, {"seed": -1}])
def test_numbers_that_make_no_sense(tmp_path, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        make_sample(tmp_path / "sample", **wrong)


def test_bad_sprites_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no sprites"):
        load_sprites(tmp_path)
    cv2.imwrite(str(tmp_path / "cat--1.webp"), np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InputError, match="cat--1.webp: not an image with alpha"):
        load_sprites(tmp_path)
    (tmp_path / "cat--1.webp").rename(tmp_path / "unicorn--1.webp")
    with pytest.raises(InputError, match="'unicorn' is not one of COCO's classes"):
        load_sprites(tmp_path)
