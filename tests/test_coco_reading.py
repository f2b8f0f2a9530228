"""Protects the one truth about a COCO file: what `check` passes can be trained on and evaluated, what CocoDetections
refuses is a problem for `check`, too, and what is merely odd is treated right by both."""

import copy
import json
import os
import shutil
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from odutils.coco.checking import check_dataset
from odutils.datasets import CocoDetections, collate
from odutils.errors import InputError
from odutils.evaluation import score
from odutils.presets import build, load_detector, save_detector
from odutils.recipe import Recipe
from odutils.training import train

CATEGORIES = {1: "person", 17: "cat"}
OBJECTS = [
    [{"bbox": [10, 10, 30, 20], "category_id": 1}, {"bbox": [50, 5.5, 40, 50], "category_id": 17}],
    [],
    [{"bbox": [0, 0, 96, 64], "category_id": 17}, {"bbox": [40, 20, 20, 20], "category_id": 1}],
]


@pytest.fixture
def root(tmp_path, write_dataset):
    return write_dataset(tmp_path / "data", OBJECTS, CATEGORIES)


def edit(root, change):
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def each(part, **values):
    return lambda content: [entry.update(values) for entry in content[part]]


def number_per_image(content):
    seen = {}
    for one in content["annotations"]:
        seen[one["image_id"]] = one["id"] = seen.get(one["image_id"], 0) + 1


def drop(part, *keys):
    return lambda content: [entry.pop(key) for entry in content[part] for key in keys]


def in_shares(content):
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x / 96, y / 64, width / 96, height / 64]


def as_corners(content):
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        one["bbox"] = [x, y, x + width, y + height]


def in_a_folder(content):
    content["images"][0]["file_name"] = "sub\\0001.png"


def first(part, **values):
    return lambda content: content[part][0].update(values)


# what is done to the file: (change, kind of problem for `check`)
TREATED_RIGHT = {
    "annotation ids that repeat per image": (number_per_image, "duplicate annotation id"),
    "no annotation ids": (drop("annotations", "id"), "missing key"),
    "numbers as class names": (lambda c: [one.update(name=one["id"]) for one in c["categories"]], "wrong type"),
    "no sizes": (drop("images", "width", "height"), "missing key"),
    "null as sizes": (each("images", width=None, height=None), "wrong type"),
    "sides exchanged": (each("images", width=64, height=96), "wrong size"),
    "wrong sizes": (each("images", width=960, height=640), "wrong size"),
    "no area, no iscrowd": (drop("annotations", "area", "iscrowd"), None),
    "null as area and iscrowd": (each("annotations", area=None, iscrowd=None, difficult=None, ignore=None), None),
    "null as source": (each("images", source=None), None),
    "null as sources": (lambda c: c.update(labelled_classes_by_source=None), None),
    "a backslash": (in_a_folder, None),
    "a box without area": (lambda c: c["annotations"].append(c["annotations"][0] | {"id": 9, "bbox": [5, 5, 0, 9]}),
                           "box without area"),
    "an object of a class that its source does not label": (
        lambda c: [c["images"][0].update(source="voc"), c.update(labelled_classes_by_source={"voc": ["cat"]})],
        "unlabelled class"),
    "an image without file": (lambda c: c["images"].append(c["images"][1] | {"id": 9, "file_name": "x.png"}),
                              "missing image"),
}  # fmt: skip
# … and some words of the sentence of CocoDetections
REFUSED = {
    "no images": (lambda c: c.update(images=[], annotations=[]), "no images", "list of images is empty"),
    "no categories": (lambda c: c.update(categories=[], annotations=[]), "no categories", "categories is empty"),
    "no list of annotations": (lambda c: c.pop("annotations"), "missing key", "no 'annotations'"),
    "no list of categories": (lambda c: c.pop("categories"), "missing key", "no 'categories'"),
    "images that are none": (lambda c: c.update(images=3), "wrong type", "'images'"),
    "an entry that is none": (lambda c: c["annotations"].append(5), "wrong type", r"annotations\[4\] is 5"),
    "one class name twice": (each("categories", name="tree"), "duplicate category name", "'tree' is used by several"),
    "class 7 and class '7'": (
        lambda c: c["categories"].extend([{"id": 2, "name": 7}, {"id": 3, "name": "7"}]), "wrong type", "'7' is used"),
    "category id twice": (each("categories", id=1), "duplicate category id", "two categories have the id 1"),
    "image id twice": (first("images", id=3), "duplicate image id", "two images have the id 3"),
    "text as image_id": (
        lambda c: [one.update(image_id=str(one["image_id"])) for one in c["annotations"]], "wrong type",
        "no image has the id '1' .1 is there: use numbers"),
    "text as category_id": (each("annotations", category_id="17"), "wrong type", "17 is there"),
    "unknown image": (each("annotations", image_id=77), "unknown image", "no image has the id 77"),
    "unknown category": (first("annotations", category_id=2), "unknown category", "no category has the id 2"),
    "a negative size": (first("annotations", bbox=[40, 30, -30, -20]), "box without area", "negative width"),
    "boxes in shares": (in_shares, "box below a pixel", "in pixels, not in 0…1"),
    "no box": (lambda c: c["annotations"][0].pop("bbox"), "missing key", "no 'bbox'"),
    "a text in a box": (first("annotations", bbox=["a", 1, 2, 3]), "wrong type", "bbox.*four finite numbers"),
    "three numbers": (first("annotations", bbox=[1, 2, 3]), "wrong type", "four finite numbers"),
    "not a number": (first("annotations", bbox=[1, 2, 3, float("nan")]), "wrong type", "four finite numbers"),
    "a text as iscrowd": (first("annotations", iscrowd="no"), "wrong type", "'iscrowd' is 'no', not 0 or 1"),
    "a negative area": (first("annotations", area=-1), "wrong type", "'area' is -1"),
    "no file name": (lambda c: c["images"][0].pop("file_name"), "missing key", "no 'file_name'"),
    "a number as file name": (first("images", file_name=5), "wrong type", "'file_name' is 5, not a text"),
    "a list as id": (first("images", id=[1]), "wrong type", "'id' is"),
    "ids of two kinds": (first("images", id="one"), "wrong type", "partly numbers, partly texts"),
    "sources that are none": (lambda c: c.update(labelled_classes_by_source=[1]), "wrong type", "not an object"),
    "a source without names": (lambda c: c.update(labelled_classes_by_source={"voc": 3}), "wrong type", "not a list"),
}  # fmt: skip


def truth_as_results(dataset):
    keys = ("image_id", "category_id", "bbox")
    annotations = [one for one in dataset.coco.dataset["annotations"] if min(one["bbox"][2:]) > 0]
    return [{key: one[key] for key in keys} | {"score": 0.9} for one in annotations]


@pytest.mark.parametrize("change, kind", TREATED_RIGHT.values(), ids=TREATED_RIGHT)
def test_what_is_odd_is_treated_right(root, change, kind):
    (root / "train" / "sub").mkdir()
    (root / "train" / "sub" / "0001.png").write_bytes((root / "train" / "0001.png").read_bytes())
    edit(root, change)
    assert {problem.kind for problem in check_dataset(root, "train")} == ({kind} if kind else set())
    dataset = CocoDetections(root, "train", size=48)
    assert dataset.object_count == 4
    boxes = collate([dataset[index] for index in range(3)])[1]
    assert boxes[0, 0].tolist() == pytest.approx([10 / 96, 10 / 96, 40 / 96, 30 / 96])  # letterboxed: 96 is the side
    scores = score(dataset, truth_as_results(dataset))
    assert scores["AP"] == pytest.approx(1) and len(scores["by_class"]) == 2


@pytest.mark.parametrize("change, kind, words", REFUSED.values(), ids=REFUSED)
def test_what_would_be_wrong_is_refused_in_one_sentence(root, change, kind, words):
    edit(root, change)
    assert kind in {problem.kind for problem in check_dataset(root, "train")}
    with pytest.raises(InputError, match=f"instances_train.json: .*{words}.*; `python -m odutils check`") as caught:
        CocoDetections(root, "train")
    assert "\n" not in str(caught.value)


def test_boxes_as_corners_are_a_problem_for_check(root):
    edit(root, as_corners)
    problems = check_dataset(root, "train")
    assert {problem.kind for problem in problems} == {"box as corners"} and len(problems) == 2  # two fit both ways
    assert "would fit as x1, y1, x2, y2" in problems[0].message


def test_a_file_without_objects_is_a_problem_for_check(root):
    edit(root, lambda content: content.update(annotations=[]))
    assert [problem.kind for problem in check_dataset(root, "train")] == ["no objects"]
    assert CocoDetections(root, "train").object_count == 0  # training refuses it; a validation set may be empty
    edit(root, lambda content: content.update(annotations=[OBJECTS[0][0] | {"id": 1, "image_id": 1, "iscrowd": 1}]))
    assert [problem.kind for problem in check_dataset(root, "train")] == ["no objects"]


@pytest.mark.parametrize("names", [[7, 8.5], ["hair  drier", " 'quoted', \"twice\" "], ["Straße", "犬\t"]])
def test_weights_know_every_name_that_a_file_may_give(root, tmp_path, names):
    edit(root, lambda c: [one.update(name=name) for one, name in zip(c["categories"], names, strict=True)])
    dataset = CocoDetections(root, "train")
    assert dataset.classes == tuple(map(str, names))
    save_detector(tmp_path / "a.safetensors", build("pyramid", dataset.classes, pretrained=False))
    assert load_detector(tmp_path / "a.safetensors").settings.classes == dataset.classes


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_the_locale_does_not_matter(root, tmp_path, encoding):
    """Names beyond ASCII, with or without byte-order mark, on a machine whose locale knows ASCII only."""
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "Straße"
    path.write_text(json.dumps(content, ensure_ascii=False), encoding=encoding)
    dataset = CocoDetections(root, "train")
    assert dataset.classes == ("Straße", "cat") and check_dataset(root, "train") == []
    results = tmp_path / "results.json"
    results.write_text(json.dumps(truth_as_results(dataset)), encoding=encoding)
    if encoding == "utf-8-sig":
        run = "import runpy, sys; sys.argv[0] = 'odutils'; runpy.run_module('odutils', run_name='__main__')"
        command = [sys.executable, "-c", run, "evaluate", "--data", root, "--split", "train", "--results", results]
        environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0 and "Stra\\xdfe" in done.stdout and "1.000" in done.stdout, done.stderr


# ---- training


def copy_to_val(root, change):
    """The same images as a validation split, its file changed."""
    shutil.copytree(root / "train", root / "val")
    content = json.loads((root / "annotations" / "instances_train.json").read_text())
    change(content)
    (root / "annotations" / "instances_val.json").write_text(json.dumps(content))


RECIPE = Recipe(epochs=1, size=64, batch_size=2, pretrained=False, mosaic=0.0)


@pytest.mark.parametrize("fault", ["no images", "no list of annotations", "ids of two kinds"])
def test_a_faulty_validation_file_is_refused_before_the_first_step(root, tmp_path, fault):
    change, _, words = REFUSED[fault]
    copy_to_val(root, change)
    with pytest.raises(InputError, match=f"instances_val.json: .*{words}"):
        train(root, tmp_path / "run", RECIPE, workers=0, device="cpu", progress=False)
    assert not (tmp_path / "run" / "losses.csv").exists()


def test_odd_files_are_trained_on(root, tmp_path):
    """Several oddities at once, up to the validation that needs sizes, ids, areas and names."""
    copy_to_val(root, lambda content: [TREATED_RIGHT[name][0](content) for name in TREATED_RIGHT if "null" in name])
    edit(root, TREATED_RIGHT["annotation ids that repeat per image"][0])
    best = train(root, tmp_path / "run", RECIPE, workers=0, device="cpu", progress=False)
    assert load_detector(best).settings.classes == ("person", "cat")


# ---- generated files


PLAUSIBLE = st.sampled_from(
    [None, True, 0, 1, 2, 3, 17, -1, 5.5, 96, 64, 0.5, 1e12, 2**53, "1", "cat", "", "0001.png", [], {}]
    + [[1, 2, 30, 40], [0, 0, 96, 64], [0.1, 0.1, 0.5, 0.5], [20, 10, 90, 60], [5, 5, 0, 0], [1, 1, "2", 2]]
)


def mutate(draw, value):
    """Walk down to a random place and put something else there, or take it away, or put it there twice."""
    key = draw(st.sampled_from(list(value) if isinstance(value, dict) else list(range(len(value)))))
    if isinstance(value[key], dict | list) and value[key] and draw(st.integers(0, 9)):
        mutate(draw, value[key])
    elif draw(st.booleans()):
        value[key] = copy.deepcopy(draw(PLAUSIBLE))  # not the list of all examples itself
    elif isinstance(value, list):
        value.insert(key, copy.deepcopy(value[key]))
    else:
        del value[key]


@pytest.fixture(scope="module")
def shared_root(tmp_path_factory, write_dataset):
    more = {"labelled_classes_by_source": {"voc": ["cat"]}, "images": [{}, {"source": "voc"}, {}]}
    root = write_dataset(tmp_path_factory.mktemp("generated") / "data", OBJECTS, CATEGORIES, **more)
    return root, (root / "annotations" / "instances_train.json").read_text()


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_check_passes_runs_and_what_is_refused_is_a_problem(shared_root, data):
    root, text = shared_root
    content = json.loads(text)
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            mutate(data.draw, content)
    (root / "annotations" / "instances_train.json").write_text(json.dumps(content))
    problems = check_dataset(root, "train")
    try:
        dataset = CocoDetections(root, "train", size=32)
    except InputError as error:
        assert problems and "\n" not in str(error)
        return
    scores = score(dataset, truth_as_results(dataset))  # whatever is not refused can be scored
    if not problems:
        assert dataset.object_count > 0
        images, boxes, labels, known = collate([dataset[index] for index in range(len(dataset))])
        assert boxes.shape[:2] == labels.shape and known.shape == (len(images), len(dataset.classes))
        assert scores["AP"] == pytest.approx(1)
