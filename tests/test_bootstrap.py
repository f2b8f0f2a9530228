"""Protects the intervals of the model card: without a draw the scores are pycocotools', a weight counts an image as
often as it says, and the interval of a difference knows that both detectors saw the same images."""

import json

import numpy as np
import pytest

from odutils import bootstrap
from odutils.datasets import CocoDetections
from odutils.evaluation import score
from odutils.sample.make import make_sample


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = make_sample(tmp_path_factory.mktemp("bootstrap") / "s", images=(1, 12), size=160, objects=(1, 4))
    return CocoDetections(folder, "val")


def results_of(dataset, seed: int, shift: float) -> list[dict]:
    """The ground truth, moved about, some of it missing, with some false positives."""
    chance, results = np.random.default_rng(seed), []
    for one in dataset.coco.anns.values():
        box = (np.array(one["bbox"]) + chance.normal(0, shift, 4) * one["bbox"][2]).clip(1).tolist()
        category = one["category_id"] if chance.random() < 0.8 else int(chance.choice(list(dataset.coco.cats)))
        if chance.random() < 0.9:
            results.append(dict(image_id=one["image_id"], category_id=category, bbox=box, score=float(chance.random())))
    return results


def test_as_they_are_and_for_some_of_them_the_scores_are_pycocotools(dataset):
    results = results_of(dataset, 0, 0.1)
    matches = bootstrap.Matches(dataset, results, dataset.ids)
    for kept in (dataset.ids, dataset.ids[:5]):
        wanted = score(dataset, results, kept)
        got = matches.score(np.isin(sorted(dataset.ids), kept).astype(float))
        assert got == pytest.approx((wanted["AP"], wanted["AP50"])) and 0 < got[0] < got[1] < 1


def test_an_image_that_counts_twice_is_as_good_as_two(dataset):
    """Precision and recall by hand, for one class: a true positive in an image of weight 2, a false one between."""
    matches = bootstrap.Matches(dataset, [], dataset.ids)
    true = np.zeros((10, 3), bool)
    true[:, [0, 2]] = True
    objects = np.zeros(len(dataset.ids))
    objects[[0, 1]] = 1
    matches.classes = [(objects, np.array([0, 2, 1]), true, ~true)]
    weights = np.zeros(len(dataset.ids))
    weights[:3] = 2, 1, 1
    # TP of weight 2, FP of weight 1, TP of weight 1; 3 objects: precision 1 up to recall 2/3, then 3/4
    ap, ap50 = matches.score(weights)
    assert ap == ap50 == pytest.approx((67 * 1 + 34 * 3 / 4) / 101)


def test_the_interval_of_a_difference_is_narrower_than_that_of_two_samples(dataset):
    good, bad = results_of(dataset, 0, 0.05), results_of(dataset, 0, 0.07)
    report = bootstrap.measure(dataset, [good, bad], draws=60)
    ((part, metrics),) = report.items()
    (first, half_first), (second, half_second), (difference, half) = metrics["AP"]
    assert difference == pytest.approx(first - second)
    assert 0 < half < np.hypot(half_first, half_second)
    assert bootstrap.measure(dataset, [good, bad], draws=60) == report
    ((_, same),) = bootstrap.measure(dataset, [good, good], draws=5).items()
    assert same["AP"][2] == [0, 0]


def test_without_an_object_there_is_nothing_to_tell(tmp_path):
    folder = make_sample(tmp_path / "s", images=(1, 2), size=96)
    file = folder / "annotations" / "instances_val.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    report = bootstrap.measure(CocoDetections(folder, "val"), [[]], draws=3)
    assert report["all"]["AP"] == [[-1, 0]] and bootstrap.describe(report) == ""
