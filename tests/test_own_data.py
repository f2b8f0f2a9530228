"""Protects the experiments of notebook 10: what they train on is what their names say, and the committed results are
of these experiments, of three seeds each."""

import json

import own_data
import pytest

from odutils.datasets import CocoDetections
from odutils.evaluation import score
from odutils.recipe import Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("own_data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_data, "HERE", here)
        own_data.prepare()
        yield here / "by_scene"


def boxes(folder, split):
    content = json.loads((folder / "annotations" / f"instances_{split}.json").read_text())
    return {one["image_id"]: one["bbox"] for one in content["annotations"]}


def scenes(folder, split):
    return {image["scene"] for image in CocoDetections(folder, split).coco.imgs.values()}


def test_no_scene_is_in_two_parts(folder):
    train, val, test = (scenes(folder, split) for split in ("train", "val", "test"))
    assert train and val and test and not train & val and not (train | val) & test
    by_image = folder.parent / "by_image"
    assert scenes(by_image, "train") & scenes(by_image, "val")
    assert abs(len(CocoDetections(by_image, "val")) - len(CocoDetections(folder, "val"))) <= 2  # shares of objects


@pytest.mark.parametrize("images", [10, 25, 50])
def test_fewer_images_are_images_of_the_training_set(folder, images):
    splits = [own_data.training_split(folder, seed, images) for seed in (0, 1)]
    some, others = (boxes(folder, split) for split in splits)
    assert len(some) == len(others) == images and some.keys() != others.keys()
    assert some.items() <= boxes(folder, "train").items()


def test_half_of_the_loose_labels_are_loose(folder):
    right, loose = boxes(folder, "train"), boxes(folder, own_data.training_split(folder, 0, labels="loose"))
    changed = [image_id for image_id in right if right[image_id] != loose[image_id]]
    assert len(changed) == len(right) // 2
    x, y, w, h = right[changed[0]]
    assert loose[changed[0]] == pytest.approx([x - 0.12 * w, y - 0.12 * h, 1.24 * w, 1.24 * h])


def test_relabelling_puts_right_what_the_detector_doubts(folder, monkeypatch):
    right = boxes(folder, "train")
    doubted = set(sorted(right)[:20])
    monkeypatch.setattr(own_data, "doubtful", lambda *_: doubted)
    monkeypatch.setattr(own_data, "run", lambda *_: None)
    relabelled = boxes(folder, own_data.training_split(folder, 0, labels="relabelled"))
    loose = boxes(folder, own_data.training_split(folder, 0, labels="loose"))
    assert all(relabelled[i] == (right[i] if i in doubted else loose[i]) for i in right)


def test_iou_of_boxes_with_sides():
    assert own_data.iou([0, 0, 2, 2], [1, 0, 2, 2]) == pytest.approx(1 / 3)


def test_opencv_finds_what_it_finds_in_pixels_of_the_image(folder, monkeypatch):
    monkeypatch.setattr(own_data, "HERE", folder.parent)
    dataset = CocoDetections(folder, "val")
    assert score(dataset, own_data.opencv("val"))["AP50"] > 0.9


def test_the_committed_results_are_complete():
    made = json.loads(own_data.RESULTS.read_text())
    for part in ("val", "test"):
        elsewhere = {"random_split"} if part == "val" else set()  # its validation set is another one
        assert set(made["scores"][part]) == {*own_data.EXPERIMENTS, "shipped", "opencv"} - elsewhere
        for name, row in made["scores"][part].items():
            assert len(row["seeds"]) == (len(own_data.SEEDS) if name in own_data.EXPERIMENTS else 1)
            assert row["AP"][0] == pytest.approx(sum(row["seeds"]) / len(row["seeds"]), abs=1e-3)
    for name, curves in made["curves"].items():
        assert [max(row["AP"] for row in curve) for curve in curves] == made["own_validation"][name]
    assert Recipe(**made["recipe"]) == own_data.RECIPE  # an option that came later had its default
