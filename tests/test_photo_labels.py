"""Protects the labels for small objects: they pass our own check, lie inside the photographs, agree with the first
labels as far as data/photos/README.md says, and every number that it gives is the file's."""

import json
import re
from collections import Counter

import pytest

from odutils.classes import CATEGORY_IDS, CLASSES
from odutils.coco.checking import check_dataset
from odutils.files import DATA

PHOTOS = DATA / "photos"
SMALL = 32**2  # pixels: COCO's definition of a small object is an area below it
README = re.sub(r"\s+", " ", (PHOTOS / "README.md").read_text(encoding="utf-8").split("## Labels for small objects")[1])


@pytest.fixture(scope="module")
def labels():
    return json.loads((PHOTOS / "labels.json").read_text(encoding="utf-8"))


@pytest.fixture
def objects(labels):
    return [one for one in labels["annotations"] if not one["iscrowd"]]


def test_they_pass_our_own_check(labels, tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "photos").symlink_to(PHOTOS, target_is_directory=True)
    (tmp_path / "annotations" / "instances_photos.json").write_text(json.dumps(labels))
    assert check_dataset(tmp_path, "photos") == []


def test_the_categories_are_all_of_cocos(labels):
    assert [(one["id"], one["name"]) for one in labels["categories"]] == list(zip(CATEGORY_IDS, CLASSES, strict=True))


def test_every_box_is_inside_its_photograph_and_its_area_is_its_own(labels):
    sizes = {one["id"]: (one["width"], one["height"]) for one in labels["images"]}
    for one in labels["annotations"]:
        x, y, width, height = one["bbox"]
        right, bottom = sizes[one["image_id"]]
        assert 0 <= x < x + width <= right and 0 <= y < y + height <= bottom, one
        assert one["area"] == width * height, one


def test_the_readme_counts_what_is_in_the_file(labels, objects):
    names = {one["id"]: one["file_name"] for one in labels["images"]}
    small = [one for one in objects if one["area"] < SMALL]
    assert f"It has {len(objects)} objects, {len(small)} of them small" in README
    for name, number in Counter(names[one["image_id"]] for one in small).items():
        assert f"{number} in `{name}`" in README
    assert f"{len(labels['annotations']) - len(objects)} more boxes are marked `iscrowd`" in README
    assert re.findall(r"`(\w+\.jpg)`", README.split("It has")[0]) == list(names.values())
    for classes in labels["labelled_classes_by_source"].values():
        assert f"{len(classes)} were looked for" in README


def test_the_readme_says_how_far_the_first_labels_agree(labels, objects):
    first = json.loads((DATA / "annotations" / "instances_photos.json").read_text(encoding="utf-8"))
    counted = [one for one in first["annotations"] if not one["iscrowd"] and not one.get("difficult")]
    confirmed = matched(objects, counted)
    small = [one for one in confirmed if one["area"] < SMALL]
    assert f"For {len(confirmed)} of the {len(objects)} objects, and {len(small)} of the" in README
    names = {one["id"]: one["file_name"] for one in first["images"]}
    assert all(names[one["id"]] == one["file_name"] for one in labels["images"])  # the same ids in both files


def matched(objects, others):
    """The objects with a box among `others` of the same image and class and an IoU of 0.5 or more, one box each."""
    pairs = [(iou(one, other), one["id"], other["id"]) for one in objects for other in others]
    partner = {}  # an object's id: the id of its box; the pairs that overlap most come first
    for overlap, one, other in sorted(pairs, reverse=True):
        if overlap >= 0.5 and one not in partner and other not in partner.values():
            partner[one] = other
    return [one for one in objects if one["id"] in partner]


def iou(one, other):
    """0 if image or class differ."""
    if (one["image_id"], one["category_id"]) != (other["image_id"], other["category_id"]):
        return 0.0
    (x, y, width, height), (x2, y2, width2, height2) = one["bbox"], other["bbox"]
    shared_width = max(min(x + width, x2 + width2) - max(x, x2), 0)
    shared = shared_width * max(min(y + height, y2 + height2) - max(y, y2), 0)
    return shared / (width * height + width2 * height2 - shared)
