"""Protects the way through Label Studio: detections become predictions, and what a person made of them comes back with
the same boxes; annotations that count, those that do not, and every fault by task."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from odutils.coco.label_studio import read_label_studio, to_label_studio
from odutils.coco.labels import ImageFolder
from odutils.errors import InputError

SIZE = (200, 100)


def region(x, y, width, height, *names, **more):
    value = {"x": x, "y": y, "width": width, "height": height, "rotation": more.pop("rotation", 0)}
    value["rectanglelabels"] = list(names or ["dog"])
    return {"type": "rectanglelabels", "value": value, "original_width": 200, "original_height": 100, **more}


def task(image, *results, number=1, **more):
    annotations = [{"id": index, "was_cancelled": False, "result": result} for index, result in enumerate(results)]
    return {"id": number, "data": {"image": image}, "annotations": annotations, **more}


@pytest.fixture
def export(tmp_path, draw_image):
    """Images of 200 × 100 pixels; a function that writes tasks and reads them."""
    for name in ("a.jpg", "clip/b.jpg", "it's 1 %.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_image(100, 200)).save(tmp_path / "images" / name)

    def read(*tasks, **options):
        (tmp_path / "export.json").write_text(json.dumps(tasks))
        return read_label_studio(tmp_path / "export.json", ImageFolder(tmp_path / "images"), **options)

    return read


@pytest.mark.parametrize(
    "image, name",
    [
        ("/data/local-files/?d=a.jpg", "a.jpg"),
        ("/data/local-files/?d=my/images/clip/b.jpg", "clip/b.jpg"),
        ("/data/local-files/?d=it%27s%201%20%25.jpg", "it's 1 %.jpg"),
        ("/data/upload/3/1f2e3d4c-a.jpg", "a.jpg"),
        ("https://example.org/x/clip/b.jpg?size=1", "clip/b.jpg"),
        ("C:\\images\\clip\\b.jpg", "clip/b.jpg"),
        ("s3://bucket/a.jpg", "a.jpg"),
    ],
)
def test_images_are_found_however_a_task_refers_to_them(export, image, name):
    assert export(task(image, [region(10, 20, 30, 40)])).objects == {name: [("dog", (20, 20, 80, 60), False)]}


def test_images_that_nobody_has_finished_are_left_out(export):
    skipped = task("a.jpg", [region(1, 1, 5, 5)], number=2)
    skipped["annotations"][0]["was_cancelled"] = True
    labels = export(task("clip/b.jpg", [region(0, 0, 50, 50)]), skipped, task("it's 1 %.jpg", number=3))
    assert list(labels.objects) == ["clip/b.jpg"]
    assert labels.notes == ["left out: 2 images without a finished annotation"]
    with pytest.raises(InputError, match="export.json: no task in it has a finished annotation"):
        export(skipped)


def test_an_annotation_without_a_box_is_an_image_without_objects(export):
    labels = export(task("a.jpg", []), task("clip/b.jpg", [region(0, 0, 50, 50)], number=2))
    assert labels.objects["a.jpg"] == []
    assert "annotated without a box: 1 image, taken as images without objects" in labels.notes


def test_of_several_annotations_the_last_one_counts_unless_it_was_cancelled(export):
    one = task("a.jpg", [region(0, 0, 10, 10)], [region(0, 0, 20, 20)], [region(0, 0, 30, 30)])
    for annotation, time in zip(one["annotations"], ("2024-02-01T10", "2024-03-01T10", "2024-04-01T10"), strict=True):
        annotation["updated_at"] = time
    one["annotations"][2]["was_cancelled"] = True
    labels = export(one)
    assert labels.objects["a.jpg"][0].box == (0, 0, 40, 20)
    assert labels.notes[0] == "1 image with several annotations: the last one of each was taken"


def test_rotated_boxes_become_the_upright_boxes_around_them(export):
    """Clockwise around the upper left corner, here (100, 50): a quarter turn takes the box to the left of it."""
    labels = export(
        task("a.jpg", [region(50, 50, 20, 10, rotation=90), region(50, 50, 20, 20, rotation=405), region(0, 0, 5, 5)])
    )
    quarter, eighth, upright = (one.box for one in labels.objects["a.jpg"])
    assert quarter == pytest.approx((90, 50, 100, 90))
    half = np.sqrt(0.5)
    assert eighth == pytest.approx((100 - 20 * half, 50, 100 + 40 * half, 50 + 60 * half))
    assert upright == (0, 0, 10, 5)
    assert "rotated boxes: 2 became the upright boxes around them" in labels.notes


def test_other_kinds_of_regions_are_left_out_and_counted(export):
    polygon = {"type": "polygonlabels", "value": {"points": [[0, 0], [1, 1], [1, 0]], "polygonlabels": ["dog"]}}
    labels = export(task("a.jpg", [polygon, region(0, 0, 5, 5), {"type": "choices", "value": {"choices": ["x"]}}]))
    assert len(labels.objects["a.jpg"]) == 1 and "left out: 1 region of another kind than boxes" in labels.notes


@pytest.mark.parametrize("kind", ["polygonlabels", "brushlabels", "polygon", "labels", "new kind"])
def test_an_image_with_regions_but_no_box_is_left_out_and_not_a_negative(export, kind):
    other = {"id": "x", "type": kind, "value": {"labels": ["dog"]}}
    labels = export(task("a.jpg", [other]), task("clip/b.jpg", [region(0, 0, 50, 50)], number=2))
    assert list(labels.objects) == ["clip/b.jpg"]
    assert labels.notes == [
        "left out: 1 region of another kind than boxes",
        "left out: 1 image with regions of which none is a box",
        "left out: 1 image without a finished annotation",
    ]
    with pytest.raises(InputError, match="no task in it has a finished annotation of boxes"):
        export(task("a.jpg", [other]))
    with pytest.raises(InputError, match="task 2: another task is about a.jpg, too"):
        export(task("a.jpg", [other]), task("a.jpg", [region(0, 0, 50, 50)], number=2))


def test_an_answer_about_the_whole_image_is_no_region(export):
    answer = {"id": "x", "type": "choices", "value": {"choices": ["nothing"]}}
    labels = export(task("a.jpg", [answer]), task("clip/b.jpg", [region(0, 0, 50, 50)], number=2))
    assert labels.objects["a.jpg"] == [] and not any("region" in note for note in labels.notes)


def test_rectangles_and_labels_are_joined_by_id(export):
    """As <Rectangle> and <Labels> export them."""

    def pair(id_, *names, x=10):
        box = {"x": x, "y": 20, "width": 30, "height": 40, "rotation": 0}
        return [
            {"id": id_, "type": "rectangle", "value": box},
            {"id": id_, "type": "labels", "value": box | {"labels": list(names)}},
        ]

    first, second = pair("p", "dog"), pair("q", "cat", "pet", x=20)
    labels = export(task("a.jpg", [first[1], *second, first[0], region(0, 0, 5, 5, "cow")]))
    assert [(one.name, one.box) for one in labels.objects["a.jpg"]] == [
        ("cat", (40, 20, 100, 60)),
        ("pet", (40, 20, 100, 60)),
        ("dog", (20, 20, 80, 60)),
        ("cow", (0, 0, 10, 5)),
    ]
    with pytest.raises(InputError, match="task 1, region 1: it has no label"):
        export(task("a.jpg", [first[0], second[1]]))


def test_odd_texts_of_a_task_are_passed_over(export):
    one = task("a.jpg", [region(10, 20, 30, 40)])
    one["data"] = {"note": "http://[not a host", **one["data"]}
    assert list(export(one).objects) == ["a.jpg"]


def test_without_a_time_the_last_annotation_counts(export):
    labels = export(task("a.jpg", [region(0, 0, 10, 10)], [region(0, 0, 20, 20)]))
    assert labels.objects["a.jpg"][0].box == (0, 0, 40, 20)


def test_the_folders_name_before_an_images_name_is_not_a_folder_in_it(export, tmp_path):
    (tmp_path / "images" / "images").mkdir()
    shutil.copy(tmp_path / "images" / "a.jpg", tmp_path / "images" / "images" / "a.jpg")
    names = ["a.jpg", "images/a.jpg"]
    tasks = to_label_studio([(name, (100, 200, 3), detections()) for name in names], ("dog",), "v1", "images")
    for one in tasks:
        one["annotations"] = [{"result": [region(10, 20, 30, 40)]}]
    assert list(export(*tasks).objects) == names


def test_a_box_with_two_labels_is_two_objects(export):
    assert [one.name for one in export(task("a.jpg", [region(0, 0, 5, 5, "dog", "pet")])).objects["a.jpg"]] == [
        "dog",
        "pet",
    ]


def test_boxes_are_cut_off_and_classes_may_have_an_order(export, tmp_path):
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    labels = export(task("a.jpg", [region(90, -1, 15, 50)]), classes_file=tmp_path / "classes.txt")
    assert labels.classes == ["cat", "dog"] and labels.objects["a.jpg"][0].box == (180, 0, 200, 49)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda one: one.pop("annotations"), "task 7 has no list of annotations: export as JSON, not as JSON-MIN"),
        (lambda one: one.update(data={"image": "none.jpg"}), "task 7: no image in .*images matches 'none.jpg'"),
        (lambda one: one.update(data=None), "task 7: no image in .* matches its data"),
        (lambda one: one["annotations"][0].pop("result"), "task 7: its annotation has no list of results"),
        (lambda one: one["annotations"][0]["result"][0]["value"].pop("x"), "task 7, region 1: x, y, width, height and"),
        (lambda one: one["annotations"][0]["result"][0].update(value=5), "task 7, region 1: x, y, width"),
        (
            lambda one: one["annotations"][0]["result"][0].update(image_rotation=90),
            "task 7, region 1: the image was turned",
        ),
        (
            lambda one: one["annotations"][0]["result"][0]["value"].update(rectanglelabels=[]),
            "task 7, region 1: it has no label",
        ),
        (
            lambda one: one["annotations"][0]["result"][0]["value"].update(width=0),
            "task 7, region 1: the box has no area",
        ),
        (
            lambda one: one["annotations"][0]["result"][0]["value"].update(x=150),
            "task 7, region 1: the box .* lies outside",
        ),
    ],
)
def test_faults_are_told_by_task(export, change, words):
    faulty = task("a.jpg", [region(1, 1, 5, 5)], number=7)
    change(faulty)
    with pytest.raises(InputError, match=f"export.json: {words}"):
        export(task("clip/b.jpg", [region(0, 0, 5, 5)]), faulty)


def test_files_that_are_no_export(export, tmp_path):
    for content in ("{}", "5", "[5]"):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(InputError, match="other.json: (not a JSON export|task 1 has no list)"):
            read_label_studio(tmp_path / "other.json", ImageFolder(tmp_path / "images"))
    with pytest.raises(InputError, match="none.json: no such file"):
        read_label_studio(tmp_path / "none.json", ImageFolder(tmp_path / "images"))
    with pytest.raises(InputError, match="task 2: another task is about a.jpg, too"):
        export(task("a.jpg", [region(0, 0, 5, 5)]), task("x/a.jpg", [region(0, 0, 5, 5)], number=2))


# ---- detections


def detections(*boxes):
    count = len(boxes)
    scores = np.linspace(0.9, 0.4, count, dtype=np.float32)
    return SimpleNamespace(boxes=np.float32(boxes).reshape(-1, 4), labels=np.arange(count) % 2 + 1, scores=scores)


def test_detections_become_predictions():
    found = [("clip/it's 1 %.jpg", (100, 200, 3), detections((20, 20, 80, 60), (0, 0, 200, 100)))]
    found += [("a.jpg", (100, 200, 3), detections())]
    first, second = to_label_studio(found, ("dog", "cat"), "best.safetensors", "my images")
    assert first["data"] == {"image": "/data/local-files/?d=my%20images/clip/it%27s%201%20%25.jpg"}
    (prediction,) = first["predictions"]
    assert prediction["model_version"] == "best.safetensors" and prediction["score"] == pytest.approx(0.65)
    one, _ = prediction["result"]
    assert one["value"] == {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["dog"]}
    assert one["type"] == "rectanglelabels" and (one["from_name"], one["to_name"]) == ("label", "image")
    assert (one["original_width"], one["original_height"]) == (200, 100) and one["score"] == pytest.approx(0.9)
    assert len({entry["id"] for entry in prediction["result"]}) == 2
    assert second["predictions"] == [{"model_version": "best.safetensors", "score": 0, "result": []}]


def test_what_was_predicted_and_accepted_comes_back_with_the_same_boxes(export):
    boxes = np.random.default_rng(0).uniform(0, 1, (20, 2, 2)).astype(np.float32)
    boxes.sort(axis=1)
    boxes = boxes.reshape(20, 4) * np.float32([200, 100, 200, 100])
    found = [("a.jpg", (100, 200, 3), detections(*boxes)), ("it's 1 %.jpg", (100, 200, 3), detections())]
    tasks = to_label_studio(found, ("dog", "cat"), "v1", "images")
    for number, one in enumerate(tasks, start=1):
        (prediction,) = one.pop("predictions")
        one.update(id=number, annotations=[{"result": prediction["result"], "was_cancelled": False}])
    labels = export(*tasks)
    np.testing.assert_allclose([one.box for one in labels.objects["a.jpg"]], boxes, atol=1e-3)
    assert [one.name for one in labels.objects["a.jpg"]] == ["dog", "cat"] * 10
    assert labels.objects["it's 1 %.jpg"] == []
