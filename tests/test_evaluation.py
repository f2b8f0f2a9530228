"""Protects the figures we quote: they are pycocotools' own, with difficult objects and unlabelled classes left out."""

import contextlib
import copy
import io
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from odutils import evaluation
from odutils.classes import CLASSES
from odutils.datasets import CocoDetections, collate
from odutils.errors import InputError
from odutils.evaluation import (
    NAMES,
    only_labelled,
    operating_points,
    predict,
    results_of_batch,
    score,
    score_by_source,
    to_results,
)
from odutils.inference import Detections, Predictor
from odutils.presets import build

CATEGORIES = {1: "person", 3: "car", 17: "cat"}
SOURCES = {"voc": ["person", "cat"], "coco": ["person", "car", "cat"]}


def random_objects(chance, names):
    """A few objects of the named classes, now and then a crowd."""
    objects = []
    for _ in range(chance.integers(0, 6)):
        x, y = chance.uniform(0, 70), chance.uniform(0, 40)
        width, height = chance.uniform(4, 96 - x), chance.uniform(4, 64 - y)
        id_ = int(chance.choice([id_ for id_, name in CATEGORIES.items() if name in names]))
        crowd = int(chance.random() < 0.15)
        objects.append(
            {"bbox": [x, y, width, height], "category_id": id_, "iscrowd": crowd, "area": width * height * 4}
        )
    return objects


def random_results(dataset, seed=0):
    """Detections that are often nearly right, sometimes doubled, and sometimes false: any class on any image."""
    chance, results = np.random.default_rng(seed), []
    for image_id in dataset.ids:
        seen = [(one["bbox"], one["category_id"]) for one in dataset.coco.imgToAnns[image_id] if chance.random() < 0.8]
        seen += [(chance.uniform(1, 50, 4), int(chance.choice(list(CATEGORIES)))) for _ in range(3)]
        seen += seen[:2]
        for box, category in seen:
            box = [float(value) for value in np.float64(box) + chance.normal(0, 2, 4)]
            one = {"image_id": image_id, "category_id": category, "bbox": box, "score": float(chance.random())}
            results.append(one)
    return results


def by_hand(file, results, kind=COCOeval, **params):
    """pycocotools as its own demonstration uses it: the first six of its twelve figures."""
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(file))
        evaluation = kind(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist()


def figures(scores):
    return [scores[name] for name in NAMES]


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_dataset):
    """40 images: odd ids label all three classes ("coco"), even ones no cars ("voc")."""
    chance = np.random.default_rng(0)
    sources = ["coco", "voc"] * 20
    objects = [random_objects(chance, SOURCES[source]) for source in sources]
    about = [{"source": source} for source in sources]
    folder = tmp_path_factory.mktemp("scored") / "data"
    return write_dataset(folder, objects, CATEGORIES, images=about, labelled_classes_by_source=SOURCES)


@pytest.fixture(scope="module")
def file(root):
    return root / "annotations" / "instances_train.json"


@pytest.fixture(scope="module")
def dataset(root):
    return CocoDetections(root, "train")


@pytest.fixture(scope="module")
def results(dataset):
    return random_results(dataset)


def is_labelled(result):
    return result["image_id"] % 2 == 1 or CATEGORIES[result["category_id"]] != "car"


def test_random_detections_equal_pycocotools(dataset, file, results):
    expected = by_hand(file, [one for one in results if is_labelled(one)])
    assert figures(score(dataset, results)) == expected
    assert len({round(value, 6) for value in expected}) > 4 and min(expected) > 0  # figures worth comparing


def test_each_source_and_class_equals_pycocotools(dataset, file, results):
    scores = score_by_source(dataset, results)
    labelled = [one for one in results if is_labelled(one)]
    assert figures(scores["all"]) == by_hand(file, labelled)
    for source, ids in {"coco": dataset.ids[::2], "voc": dataset.ids[1::2]}.items():
        assert figures(scores["by_source"][source]) == by_hand(file, results, imgIds=ids)
    assert list(scores["by_class"]) == list(CATEGORIES.values())
    for id_, name in CATEGORIES.items():
        assert scores["by_class"][name] == pytest.approx(by_hand(file, labelled, catIds=[id_])[1], abs=1e-12)
    json.dumps(scores)


def test_scoring_changes_nothing(dataset, results):
    before = copy.deepcopy(results)
    assert score_by_source(dataset, results) == score_by_source(dataset, results)
    assert results == before


def test_perfect_detections(dataset):
    perfect = [one | {"score": 0.9} for one in dataset.coco.dataset["annotations"] if not one["iscrowd"]]
    perfect = [{key: one[key] for key in ("image_id", "category_id", "bbox", "score")} for one in perfect]
    scores = score_by_source(dataset, perfect)
    assert scores["all"]["AP"] == pytest.approx(1) and min(scores["by_class"].values()) > 0.9999


def test_no_detections_at_all(dataset):
    scores = score_by_source(dataset, [])
    assert scores["all"]["AP"] == scores["by_source"]["voc"]["AP50"] == 0
    assert scores["by_class"] == dict.fromkeys(CATEGORIES.values(), 0)


def test_a_class_without_objects_has_no_figure(tmp_path, write_dataset):
    objects = [[{"bbox": [5, 5, 20, 20], "category_id": 1}]]
    dataset = CocoDetections(write_dataset(tmp_path / "d", objects, CATEGORIES), "train")
    found = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20], "score": 0.5}
    scores = score(dataset, [found, found | {"category_id": 17, "score": 0.9}])
    assert scores["by_class"] == {"person": pytest.approx(1)} and scores["AP"] == pytest.approx(1)
    assert scores["large"] == -1


@pytest.mark.parametrize("mark", ["difficult", "ignore", "iscrowd"])
def test_what_is_to_be_ignored_counts_neither_way(tmp_path, write_dataset, mark):
    """Found or not found, the objects marked difficult change nothing; without the mark they would."""
    hard = {"bbox": [60, 10, 20, 20], "category_id": 1}
    easy = {"bbox": [5, 5, 20, 20], "category_id": 1}
    marked = CocoDetections(write_dataset(tmp_path / "a", [[easy, hard | {mark: 1}]] * 3, CATEGORIES), "train")
    plain = CocoDetections(write_dataset(tmp_path / "b", [[easy, hard]] * 3, CATEGORIES), "train")
    find_easy = [{"image_id": id_, "category_id": 1, "bbox": easy["bbox"], "score": 0.5} for id_ in (1, 2, 3)]
    find_hard = [one | {"bbox": hard["bbox"], "score": 0.9} for one in find_easy]
    assert score(marked, find_easy)["AP"] == pytest.approx(1)
    assert score(marked, find_easy + find_hard)["AP"] == pytest.approx(1)
    assert score(plain, find_easy)["AP"] < 0.6
    assert score(marked, find_hard)["AP"] == 0


def test_an_object_with_id_0_counts_as_others_do(tmp_path, write_dataset):
    """pycocotools itself would call it missed: a match is the object's id there, and 0 is no match."""
    one = {"bbox": [5, 5, 20, 20], "category_id": 1, "id": 0}
    dataset = CocoDetections(write_dataset(tmp_path / "d", [[one]], CATEGORIES), "train")
    found = {"image_id": 1, "category_id": 1, "bbox": one["bbox"], "score": 0.5}
    assert score(dataset, [found])["AP"] == pytest.approx(1)


def test_operating_points(tmp_path, write_dataset):
    """Counted by hand: two persons, a difficult one and a cat on two images."""
    person, cat = {"bbox": [5, 5, 20, 20], "category_id": 1}, {"bbox": [50, 10, 30, 30], "category_id": 17}
    hard = {"bbox": [50, 10, 20, 20], "category_id": 1, "difficult": 1}
    dataset = CocoDetections(write_dataset(tmp_path / "d", [[person, hard], [person, cat]], CATEGORIES), "train")

    def found(image_id, box, category_id, score):
        return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}

    results = [
        found(1, [6, 6, 20, 20], 1, 0.9),  # right
        found(1, [5, 5, 20, 22], 1, 0.8),  # the same person again: wrong
        found(1, hard["bbox"], 1, 0.7),  # neither
        found(2, cat["bbox"], 1, 0.6),  # wrong name
        found(2, cat["bbox"], 17, 0.5),  # right
        found(2, [0, 40, 10, 10], 1, 0.4),  # nothing there
    ]
    points = operating_points(dataset, results, [0.95, 0.85, 0.55, 0.45, 0.1])
    assert [point["precision"] for point in points] == pytest.approx([0, 1, 1 / 3, 2 / 4, 2 / 5])
    assert [point["recall"] for point in points] == pytest.approx([0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert [point["boxes"] for point in points] == [0, 0.5, 1.5, 2, 2.5]


def test_results_of_a_detector(root):
    dataset = CocoDetections(root, "train", classes=CLASSES)
    boxes = np.float32([[10, 20, 40, 60], [0, 0, 5, 5], [1, 2, 3, 4]])
    # Of COCO's 80: person, car, dog. Image 1 ("coco") labels cars, image 2 ("voc") does not; no category is a dog.
    found = Detections(boxes, np.int64([1, 3, 17]), np.float32([0.75, 0.5, 0.25]))
    first, second = to_results(dataset, 0, found), to_results(dataset, 1, found)
    person = {"image_id": 1, "category_id": 1, "bbox": [10, 20, 30, 40], "score": 0.75}
    assert first == [person, {"image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5], "score": 0.5}]
    assert second == [one | {"image_id": 2} for one in first]
    assert only_labelled(dataset, first + second) == [*first, person | {"image_id": 2}]
    json.dumps(first)


@pytest.mark.parametrize("wrong", [{"image_id": 999}, {"category_id": 2}, {"image_id": [1]}])
def test_results_of_another_data_set_are_refused(dataset, results, wrong):
    with pytest.raises(InputError, match="image_id or category_id"):
        score(dataset, [*results, results[0] | wrong])


def test_the_fast_implementation_gives_the_same(file, dataset, results):
    fast = pytest.importorskip("faster_coco_eval")
    labelled = [one for one in results if is_labelled(one)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = fast.COCO(str(file))
        evaluation = fast.COCOeval_faster(truth, truth.loadRes(copy.deepcopy(labelled)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert figures(score(dataset, results)) == pytest.approx(list(evaluation.stats[:6]), abs=1e-9)


SIZES = {
    "right": {},
    "missing": {"width": None, "height": None},
    "exchanged": {"width": 64, "height": 96},
    "ten times": {"width": 960, "height": 640},
}


@pytest.mark.parametrize("wrong", SIZES.values(), ids=SIZES)
def test_validation_while_training_gives_what_evaluate_gives(tmp_path, write_dataset, wrong):
    """Boxes in the same pixels, whatever the JSON says about the images' sizes: one truth for both."""
    objects = [[{"bbox": [5, 5, 20, 20], "category_id": 1}]] * 3
    root = write_dataset(tmp_path / "d", objects, CATEGORIES, images=[wrong] * 3)
    dataset = CocoDetections(root, "train", size=64)
    torch.manual_seed(0)
    detector = build("pyramid", dataset.classes, pretrained=False).eval()
    detector.settings = detector.settings._replace(size=64)
    by_predictor = predict(Predictor(detector, "cpu"), dataset, batch_size=2)
    assert len({one["image_id"] for one in by_predictor}) == 3
    with torch.inference_mode():
        images, *_ = collate([dataset[index] for index in range(3)])
        of_batch = results_of_batch(dataset, 0, detector(images), detector.grid(64, 64))
    assert len(of_batch) == len(by_predictor)
    for one, other in zip(of_batch, by_predictor, strict=True):
        assert one["image_id"] == other["image_id"] and one["category_id"] == other["category_id"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
    right = CocoDetections(write_dataset(tmp_path / "right", objects, CATEGORIES), "train", size=64)
    assert predict(Predictor(detector, "cpu"), right, batch_size=2) == by_predictor


def test_a_single_source_is_scored_once(tmp_path, write_dataset, monkeypatch):
    dataset = CocoDetections(
        write_dataset(tmp_path / "d", [[{"bbox": [5, 5, 20, 20], "category_id": 1}]], CATEGORIES), "train"
    )
    calls, original = [], evaluation.run_cocoeval
    monkeypatch.setattr(evaluation, "run_cocoeval", lambda *args: calls.append(args) or original(*args))
    scores = score_by_source(dataset, [])
    assert len(calls) == 1 and scores["by_source"] == {"all": scores["all"]}
    assert list(scores["all"]) == list(NAMES)
