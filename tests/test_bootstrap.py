"""Protects the intervals of the model card: without a draw the scores are pycocotools', a weight counts an image as
often as it says, and the interval of a difference knows that both detectors saw the same images."""

import json
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from odutils import bootstrap
from odutils.datasets import CocoDetections
from odutils.evaluation import score, score_by_source
from odutils.sample.make import make_sample


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = make_sample(tmp_path_factory.mktemp("bootstrap") / "s", images=(1, 12), size=160, objects=(1, 4))
    return CocoDetections(folder, "val")


def results_of(dataset, seed: int, shift: float) -> list[dict]:
    """The ground truth, moved about, some of it missing, with some false positives."""
    rng, results = np.random.default_rng(seed), []
    for one in dataset.coco.anns.values():
        box = (np.array(one["bbox"]) + rng.normal(0, shift, 4) * one["bbox"][2]).clip(1).tolist()
        category = one["category_id"] if rng.random() < 0.8 else int(rng.choice(list(dataset.coco.cats)))
        if rng.random() < 0.9:
            results.append(dict(image_id=one["image_id"], category_id=category, bbox=box, score=float(rng.random())))
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


def perfect(dataset):
    keys = ("image_id", "category_id", "bbox")
    return [{key: one[key] for key in keys} | {"score": 0.9} for one in dataset.coco.anns.values()]


def test_draws_without_an_object_are_left_out(tmp_path, write_dataset):
    """Of four images one has an object: a third of the draws lack it, and have no AP rather than one of -1."""
    box = {"bbox": [5, 5, 30, 20], "category_id": 1}
    dataset = CocoDetections(write_dataset(tmp_path / "s", [[box], [], [], []], {1: "cat"}), "train", classes=["cat"])
    report = bootstrap.measure(dataset, [perfect(dataset), []], draws=50)
    assert report["all"]["AP"] == report["all"]["AP50"] == [[1, 0], [0, 0], [1, 0]]


def test_several_sources_have_an_interval_each_and_all_images_one(tmp_path, write_dataset):
    """Images without a source are a part of their own, which is not called as that of all images."""
    box = {"bbox": [5, 5, 30, 20], "category_id": 1}
    about = [{"source": "web"}] * 4 + [{}] * 4
    folder = write_dataset(tmp_path / "s", [[box]] * 8, {1: "cat"}, images=about)
    dataset = CocoDetections(folder, "train", classes=["cat"])
    results = perfect(dataset)[:4]
    report = bootstrap.measure(dataset, [results], draws=20)
    assert list(report) == ["all", "web", "without a source"]
    assert [of["AP"][0][0] for of in report.values()] == pytest.approx([51 / 101, 1, 0])
    assert report["all"]["AP"][0][1] > 0.1
    by_source = score_by_source(dataset, results)["by_source"]
    assert {source: of["AP"] for source, of in by_source.items()} == {"web": 1, "without a source": 0}


def test_a_bar_only_where_it_is_asked_for(dataset, monkeypatch):
    shown = []

    def bar(total, unit, show):
        shown.append((total, show))
        return nullcontext(SimpleNamespace(update=lambda: None))

    monkeypatch.setattr(bootstrap, "bar", bar)
    bootstrap.measure(dataset, [[]], draws=2)
    bootstrap.measure(dataset, [[]], draws=3, progress=True)
    assert shown == [(2, False), (3, True)]
