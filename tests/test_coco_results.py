"""Protects results files: written whole, read in every encoding, refused with a sentence, and doubted where boxes are
in another form. What `evaluate --results` refuses is tested in test_cli.py."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from odutils.coco.results import doubt_about, read_results, score_table, to_coco
from odutils.datasets import CocoDetections
from odutils.errors import InputError
from odutils.evaluation import score_by_source

CATEGORIES = {1: "person", 17: "cat"}
OBJECTS = [[{"bbox": [50, 20, 40, 30], "category_id": 1}], [{"bbox": [60, 40, 20, 20], "category_id": 17}]]


@pytest.fixture
def dataset(tmp_path, write_dataset):
    images = [{"file_name": "0001.png"}, {"file_name": "sub\\0002.png"}]
    return CocoDetections(write_dataset(tmp_path / "data", OBJECTS, CATEGORIES, images=images), "train")


@pytest.fixture
def results(dataset):
    keys = ("image_id", "category_id", "bbox")
    return [{key: one[key] for key in keys} | {"score": 0.9} for one in dataset.coco.dataset["annotations"]]


def written(folder, content, encoding="utf-8"):
    path = folder / "results.json"
    path.write_text(json.dumps(content), encoding=encoding)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_every_encoding_of_json_is_read(tmp_path, dataset, results, encoding):
    assert read_results(written(tmp_path, results, encoding), dataset) == results


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_an_id_as_text_is_refused_with_the_reason(tmp_path, dataset, results, key):
    value = results[0][key]
    path = written(tmp_path, [results[0] | {key: str(value)}])
    with pytest.raises(InputError, match=f"result 0: {key} '{value}' is not in the data set .{value} is there"):
        read_results(path, dataset)


def test_backslashes_separate_folders(tmp_path, dataset):
    content = {
        "images": [{"id": 7, "file_name": "C:\\photos\\sub\\0002.png"}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}],
    }
    [result] = read_results(written(tmp_path, content), dataset)
    assert result == {"image_id": 2, "category_id": 17, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    "names, found, expected",
    [
        (["0001.png", "sub\\0002.png"], "0002.png", 2),  # detected in the sub-folder
        (["a/1.png", "b/1.png"], "x/b/1.png", 2),
        (["1.png", "b/1.png"], "1.png", 1),  # the name itself, although another one ends like it
        (["a/1.png", "b/1.png"], "1.png", None),  # either
        (["a/1.png", "b/2.png"], "x/3.png", None),
    ],
)
def test_images_are_found_by_the_ends_of_their_names(tmp_path, write_dataset, names, found, expected):
    images = [{"file_name": name} for name in names]
    dataset = CocoDetections(write_dataset(tmp_path / "data", OBJECTS, CATEGORIES, images=images), "train")
    content = {"images": [{"id": 7, "file_name": found}], "categories": [{"id": 3, "name": "cat"}]}
    content["annotations"] = [{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}]
    path = written(tmp_path, content)
    if expected is None:
        with pytest.raises(InputError, match=f"1 of its images, such as {found}, are not in the data set"):
            read_results(path, dataset)
    else:
        assert read_results(path, dataset)[0]["image_id"] == expected


def test_detections_are_a_whole_coco_file():
    found = SimpleNamespace(
        boxes=np.float32([[10, 20, 30, 50], [0, 0, 5, 4]]), labels=np.array([2, 1]), scores=np.float32([0.75, 0.5])
    )
    nothing = SimpleNamespace(boxes=np.empty((0, 4), np.float32), labels=np.array([], int), scores=np.float32([]))
    content = to_coco([("a/1.jpg", (60, 80, 3), nothing), ("2.jpg", (60, 80, 3), found)], ("bolt", "nut"))
    assert content == {
        "images": [
            {"id": 1, "file_name": "a/1.jpg", "width": 80, "height": 60},
            {"id": 2, "file_name": "2.jpg", "width": 80, "height": 60},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 2,
                "category_id": 2,
                "bbox": [10, 20, 20, 30],
                "area": 600,
                "iscrowd": 0,
                "score": 0.75,
            },
            {"id": 2, "image_id": 2, "category_id": 1, "bbox": [0, 0, 5, 4], "area": 20, "iscrowd": 0, "score": 0.5},
        ],
        "categories": [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}],
    }


def test_boxes_in_another_form_are_doubted(dataset, results):
    assert doubt_about(results, dataset) is None and doubt_about([], dataset) is None
    in_shares = [one | {"bbox": [0.5, 0.3, 0.4, 0.5]} for one in results]
    assert "in pixels, not in 0…1" in doubt_about(in_shares, dataset)
    corners = [one | {"bbox": [x, y, x + w, y + h]} for one, (x, y, w, h) in ((o, o["bbox"]) for o in results)]
    assert doubt_about(corners, dataset).startswith("2 of 2 boxes would fit as x1, y1, x2, y2")


def test_the_table_has_no_figure_where_there_is_no_object(dataset, results):
    lines = score_table(score_by_source(dataset, results)).splitlines()
    assert lines[0].split() == ["AP", "AP50", "AP75", "small", "medium", "large"]
    assert lines[1].split() == ["all", "1.000", "1.000", "1.000", "1.000", "1.000", "-"]
    assert [line.split() for line in lines[2:]] == [[], ["class", "AP50"], ["cat", "1.000"], ["person", "1.000"]]
