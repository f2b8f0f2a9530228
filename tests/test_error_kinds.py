"""Protects the error kinds: each is what its definition says, and correcting it adds what a slow version adds."""

import copy

import numpy as np
import pytest

from odutils.datasets import CocoDetections
from odutils.error_kinds import KINDS, Error, average_precision, find_errors, gains
from odutils.evaluation import match_results, score

CATEGORIES = {1: "person", 3: "car", 17: "cat"}


def found(box, category_id=1, score=0.5, image_id=1):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}


def data_set(folder, write_dataset, *objects):
    """One image with these (box, category_id, further keys) objects."""
    listed = [{"bbox": box, "category_id": category, **more} for box, category, more in objects]
    return CocoDetections(write_dataset(folder / "d", [listed], CATEGORIES), "train")


def random_case(folder, write_dataset, seed, crowds=True):
    """Six images of crowded objects, and detections with errors of all six kinds."""
    chance, images, results = np.random.default_rng(seed), [], []
    for image_id in range(1, 7):
        objects = []
        for _ in range(chance.integers(0, 7)):
            corner, size = chance.uniform(0, 50, 2), chance.uniform(8, 40, 2)
            one = {"bbox": [*map(float, corner), *map(float, size)], "category_id": int(chance.choice([1, 3, 17]))}
            mark = chance.choice(["", "", "", "iscrowd", "difficult"]) if crowds else ""
            objects.append(one | ({mark: 1} if mark else {}))
        images.append(objects)
        for one in [*objects, *objects[:2]]:
            if chance.random() < 0.8:
                box = [float(v) for v in one["bbox"] + chance.normal(0, chance.choice([1, 6, 12]), 4)]
                category = one["category_id"] if chance.random() < 0.7 else int(chance.choice([1, 3, 17]))
                box[2:] = max(box[2], 2), max(box[3], 2)
                results.append(found(box, category, float(chance.random()), image_id))
        results.append(found([1, 1, 5, 5], int(chance.choice([1, 3, 17])), float(chance.random()), image_id))
    return CocoDetections(write_dataset(folder / str(seed), images, CATEGORIES), "train"), results


# ---- a case of each kind, made by hand

PERSON, CAT = [10, 10, 20, 40], [60, 10, 30, 30]


@pytest.mark.parametrize(
    "kind, result",
    [
        ("classification", found(CAT, 1)),
        ("classification", found([60, 10, 30, 20], 3)),  # IoU 2 / 3
        ("localization", found([10, 10, 20, 15])),  # IoU 3 / 8
        ("localization", found([20, 10, 20, 40])),  # IoU 1 / 3
        ("both", found([60, 10, 30, 12], 1)),  # IoU 2 / 5 with the cat
        ("duplicate", found([10, 10, 20, 36])),
        ("background", found([40, 52, 10, 10])),
        ("background", found([26, 46, 20, 15])),  # touches the person: IoU 0.015
    ],
)
def test_each_kind(tmp_path, write_dataset, kind, result):
    dataset = data_set(tmp_path, write_dataset, (PERSON, 1, {}), (CAT, 17, {}))
    right = [found(PERSON, 1, 0.9), found(CAT, 17, 0.9)]
    errors = find_errors(match_results(dataset, [*right, result]))
    assert [error.kind for error in errors] == [kind]
    fixed = gains(match_results(dataset, [*right, result]), errors)
    assert fixed == dict.fromkeys(KINDS, 0)  # it comes after all that is right, and costs nothing


def test_what_is_missed_and_what_is_only_named_or_placed_wrongly(tmp_path, write_dataset):
    dataset = data_set(tmp_path, write_dataset, (PERSON, 1, {}), (CAT, 17, {}), ([40, 40, 9, 9], 3, {}))
    named, placed = found(CAT, 3, 0.8), found([20, 10, 20, 40], 1, 0.7)
    matched = match_results(dataset, [placed, named])
    errors = find_errors(matched)
    assert [error.kind for error in errors] == ["classification", "localization", "missed"]  # most confident first
    assert [matched.objects[error.object]["category_id"] for error in errors] == [17, 1, 3]
    assert gains(matched, errors) == pytest.approx(
        dict.fromkeys(KINDS, 0) | {"classification": 1 / 3, "localization": 1 / 3}
    )


def test_an_object_fixed_twice_counts_once(tmp_path, write_dataset):
    """Two poor boxes on one person: the more confident one is corrected, the other goes, and is no duplicate."""
    dataset = data_set(tmp_path, write_dataset, (PERSON, 1, {}))
    matched = match_results(dataset, [found([20, 10, 20, 40], score=0.7), found([22, 10, 20, 40], score=0.8)])
    errors = find_errors(matched)
    assert [error.kind for error in errors] == ["localization", "localization"]
    assert gains(matched, errors)["localization"] == pytest.approx(1)


def test_a_false_detection_costs_by_its_place_in_the_ranking(tmp_path, write_dataset):
    dataset = data_set(tmp_path, write_dataset, (PERSON, 1, {}))
    matched = match_results(dataset, [found(PERSON, score=0.6), found([40, 40, 9, 9], score=0.9)])
    assert gains(matched, find_errors(matched))["background"] == pytest.approx(0.5)


@pytest.mark.parametrize("mark", ["iscrowd", "difficult"])
def test_what_counts_neither_way_is_no_error(tmp_path, write_dataset, mark):
    dataset = data_set(tmp_path, write_dataset, (PERSON, 1, {mark: 1}), (CAT, 17, {}))
    matched = match_results(dataset, [found(PERSON), found(CAT, 17)])
    assert find_errors(matched) == [] and len(matched.objects) == len(matched.results) == 1


def test_nothing_at_all(tmp_path, write_dataset):
    dataset = data_set(tmp_path, write_dataset, (PERSON, 1, {}))
    matched = match_results(dataset, [])
    errors = find_errors(matched)
    assert errors == [Error("missed", None, 0)]
    assert gains(matched, errors) == dict.fromkeys(KINDS, 0)  # nothing is left to score


# ---- against others


@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_pycocotools(tmp_path, write_dataset, seed):
    dataset, results = random_case(tmp_path, write_dataset, seed)
    matched = match_results(dataset, results)
    assert len(results) > len(matched.results)  # crowds were left out
    for category, name in CATEGORIES.items():
        of_class = [i for i, one in enumerate(matched.results) if one["category_id"] == category]
        of_class.sort(key=lambda i: -matched.results[i]["score"])
        count = sum(one["category_id"] == category for one in matched.objects)
        by_hand = average_precision(matched.true_positive[of_class], count)
        assert by_hand == pytest.approx(score(dataset, results)["by_class"][name], abs=1e-12)


def overlap(a, b):
    """IoU of two boxes [x, y, width, height]."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(0, width) * max(0, height)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def kind_slowly(result, objects):
    """From the definitions alone, one object after the other."""
    pairs = [(overlap(result["bbox"], o["bbox"]), o["category_id"] == result["category_id"]) for o in objects]
    own = max((iou for iou, same in pairs if same), default=0)
    other = max((iou for iou, same in pairs if not same), default=0)
    if 0.1 <= own < 0.5:
        return "localization"
    if other >= 0.5:
        return "classification"
    if own >= 0.5:
        return "duplicate"
    return "both" if max(own, other) > 0.1 else "background"


def fix_slowly(dataset, results, kind):
    """AP50 after the data set itself was fixed: other results, other objects, scored anew by pycocotools."""
    matched = match_results(dataset, results)
    errors = [error for error in find_errors(matched) if error.kind == kind]
    gone = {error.result for error in errors}
    fixed = [one for i, one in enumerate(matched.results) if i not in gone]
    done = set(np.flatnonzero(matched.found))
    for error in errors:
        if kind in ("classification", "localization") and error.object not in done:
            done.add(error.object)
            perfect = {key: matched.objects[error.object][key] for key in ("image_id", "category_id", "bbox")}
            fixed.append(perfect | {"score": matched.results[error.result]["score"]})
    other = copy.deepcopy(dataset)
    # A perfect box must not find a crowd instead, and nothing else may: only what counts is kept.
    kept = [one for g, one in enumerate(matched.objects) if kind != "missed" or g not in {e.object for e in errors}]
    other.coco.dataset["annotations"] = [one | {"ignore": 0} for one in kept]
    other.coco.createIndex()
    return score(other, fixed)["AP50"]


@pytest.mark.parametrize("seed", range(8))
def test_kinds_and_gains_equal_the_slow_version(tmp_path, write_dataset, seed):
    dataset, results = random_case(tmp_path, write_dataset, seed)
    matched = match_results(dataset, results)
    errors = find_errors(matched)
    for error in errors:
        if error.kind != "missed":
            one = matched.results[error.result]
            there = [o for o in matched.objects if o["image_id"] == one["image_id"]]
            assert error.kind == kind_slowly(one, there)
    assert sorted(e.result for e in errors if e.kind != "missed") == list(np.flatnonzero(~matched.true_positive))
    assert len({error.kind for error in errors}) >= 4
    before = score(dataset, results)["AP50"]
    for kind, gain in gains(matched, errors).items():
        assert gain == pytest.approx(fix_slowly(dataset, results, kind) - before, abs=1e-9), kind


@pytest.mark.parametrize("seed", range(4))
def test_tide_itself_says_the_same(tmp_path, write_dataset, seed):
    """The authors' package, where it is installed; without crowds, on which it counts errors, too."""
    tidecv = pytest.importorskip("tidecv")
    dataset, results = random_case(tmp_path, write_dataset, seed, crowds=False)
    truth, said = tidecv.Data("truth"), tidecv.Data("said")
    for image_id in dataset.ids:
        truth.add_image(image_id, str(image_id))  # or it passes over images without objects
    for one in dataset.coco.dataset["annotations"]:
        truth.add_ground_truth(one["image_id"], one["category_id"], one["bbox"])
    for one in results:
        said.add_detection(one["image_id"], one["category_id"], one["score"], one["bbox"])
    run = tidecv.TIDE().evaluate(truth, said, mode=tidecv.TIDE.BOX)
    matched = match_results(dataset, results)
    errors = find_errors(matched)
    ours = gains(matched, errors)
    meant = {kind: {e.object for e in errors if e.kind == kind and not matched.found[e.object]} for kind in KINDS[:2]}
    names = {"classification": "Cls", "localization": "Loc", "both": "Both", "duplicate": "Dupe", "background": "Bkg"}
    theirs = {kind.short_name: gain / 100 for kind, gain in run.fix_main_errors().items()}
    counts = {kind.short_name: len(listed) for kind, listed in run.error_dict.items()}
    for kind, name in (names | {"missed": "Miss"}).items():
        assert sum(error.kind == kind for error in errors) == counts[name], kind
        if kind not in ("classification", "localization") or not meant["classification"] & meant["localization"]:
            assert ours[kind] == pytest.approx(theirs[name], abs=1e-9), kind
        else:  # theirs lets only the most confident of both kinds fix an object, so fixing one kind does less
            assert ours[kind] >= theirs[name] - 1e-9, kind
