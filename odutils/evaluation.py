"""How good the detections of a data set are: COCO's metrics, by pycocotools.

A result is a dict in COCO's form: image_id, category_id, bbox [x, y, w, h] in pixels of the image, score. At IoU 0.5 it
is a true positive (TP) if it is matched to a ground-truth object of its class, else a false positive (FP); an object
that no result is matched to is a false negative (FN). Precision is TP / (TP + FP), recall TP / (TP + FN).
"""

import contextlib
import copy
import io
import itertools
from typing import NamedTuple

import numpy as np
from torch import Tensor

from odutils.ahead import map_ahead
from odutils.anchors import Grid
from odutils.coco.reading import ids_by_source
from odutils.datasets import CocoDetections
from odutils.errors import InputError
from odutils.images import place
from odutils.inference import Detections, Predictor, to_detections
from odutils.progress import bar
from odutils.selection import EVALUATED, select_batch

NAMES = ("AP", "AP50", "AP75", "small", "medium", "large")  # in the order of COCOeval.stats


class MatchedResults(NamedTuple):
    """Results and ground-truth objects as pycocotools matched them at IoU 0.5, without what counts neither way."""

    results: list[dict]  # D, in pycocotools' order: by class, by image, by score
    true_positive: np.ndarray  # (D,) bool; the others are false positives
    objects: list[dict]  # G, the ground truth
    found: np.ndarray  # (G,) bool: matched to a result; the others are false negatives


def to_results(dataset: CocoDetections, index: int, found: Detections) -> list[dict]:
    """The detections of image `index` as COCO results; classes that the data set's file does not have are left out."""
    results = []
    for box, label, score in zip(found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), strict=True):
        if label in dataset.category_of:
            x1, y1, x2, y2 = box
            about = {"image_id": dataset.ids[index], "category_id": dataset.category_of[label]}
            results.append(about | {"bbox": [x1, y1, x2 - x1, y2 - y1], "score": score})
    return results


def predict(
    predictor: Predictor,
    dataset: CocoDetections,
    batch_size: int = 8,
    class_agnostic: bool = False,
    progress: bool = False,
) -> list[dict]:
    """Run the predictor over a data set; threads read the next images meanwhile. Returns COCO results.

    class_agnostic: see `selection.select`.   progress: show a bar.
    """
    images, results = map_ahead(dataset.image, range(len(dataset)), size=2 * batch_size), []
    options = {"threshold": EVALUATED, "class_agnostic": class_agnostic}
    options |= {"progress": True} if progress else {}  # other predictors need not know the option
    with bar(total=len(dataset), unit="images", show=progress) as shown:
        for first in range(0, len(dataset), batch_size):
            batch = list(itertools.islice(images, batch_size))
            found_in_each = predictor.batch(batch, **options)
            for index, found in enumerate(found_in_each, start=first):
                results += to_results(dataset, index, found)
            shown.update(len(batch))
    return results


def results_of_batch(dataset: CocoDetections, first: int, predictions: tuple[Tensor, Tensor], grid: Grid) -> list[dict]:
    """COCO results of a batch that the data set itself made, its images numbered from `first`.

    predictions: class_logits (N, A, C) and box_codes (N, A, 4). The images' sizes are those of their files, not those
    of the JSON, so that `predict` gives the same results.
    """
    logits, codes = predictions
    selected = select_batch(logits.float(), codes.float(), grid, threshold=EVALUATED, class_agnostic=False)
    results = []
    for index, found in enumerate(selected, start=first):
        shape = dataset.shape(index)
        placement = place(*shape, dataset.size, dataset.squash)
        results += to_results(dataset, index, to_detections(*found, placement, shape))
    return results


def score(dataset: CocoDetections, results: list[dict], image_ids: list[int] | None = None) -> dict:
    """COCO's metrics by pycocotools: AP (mean over IoU 0.50:0.95), AP50, AP75, AP of small, medium and large objects.

    -1 where there is no such object. Crowds, difficult objects and classes that an image's source does not label count
    neither way. `by_class` {name: AP50} comes with them.   image_ids: score these images only.
    Raises InputError if a result names another image or category.
    """
    evaluation = run_cocoeval(dataset, only_labelled(dataset, results), image_ids)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # (recalls, categories): IoU 0.5, any size, 100 detections
    names = [category["name"] for category in dataset.coco.loadCats(evaluation.params.catIds)]
    by_class = {name: float(p.mean()) for name, p in zip(names, precision.T, strict=True) if (p > -1).all()}
    return dict(zip(NAMES, map(float, evaluation.stats[:6]), strict=True)) | {"by_class": by_class}


def run_cocoeval(dataset: CocoDetections, results: list[dict], image_ids: list[int] | None = None):
    """pycocotools' COCOeval after its first step: each result matched to a ground-truth object or to none (`evalImgs`).

    Difficult objects, and objects of a class that their image's source does not label, are ignored as crowds are: never
    FN, nor is a result that is matched to one TP or FP. `accumulate()` and `summarize()` make AP of it.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = known_classes(dataset)

    class Evaluation(COCOeval):
        def _prepare(self):  # pycocotools ignores crowds only, and takes an object with id 0 for one not found
            super()._prepare()
            numbers = itertools.count(1)
            for (image_id, category_id), objects in self._gts.items():
                unknown = not known[image_id][dataset.label_of[category_id] - 1]
                ignored = [int(bool(unknown or one["ignore"] or one.get("difficult"))) for one in objects]
                copies = [o | {"ignore": i, "id": next(numbers)} for o, i in zip(objects, ignored, strict=True)]
                self._gts[image_id, category_id] = copies

    with contextlib.redirect_stdout(io.StringIO()):
        detected = dataset.coco.loadRes(copy.deepcopy(results)) if results else COCO()  # loadRes chokes on none
        evaluation = Evaluation(dataset.coco, detected, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
    return evaluation


def known_classes(dataset: CocoDetections) -> dict[int, list[bool]]:
    """Which classes are labelled in each image (C,), by image id."""
    return {image_id: dataset.known(index).tolist() for index, image_id in enumerate(dataset.ids)}


def only_labelled(dataset: CocoDetections, results: list[dict]) -> list[dict]:
    """Results without those of classes that their image's source does not label: TP or FP, that is not known."""
    known = known_classes(dataset)
    try:
        return [r for r in results if known[r["image_id"]][dataset.label_of[r["category_id"]] - 1]]
    except (KeyError, TypeError) as error:
        raise InputError(f"a result without or with an unknown image_id or category_id ({error!r})") from None


def match_results(dataset: CocoDetections, results: list[dict]) -> MatchedResults:
    """Which results are true positives and which objects are found, at IoU 0.5. Raises InputError as `score` does.

    Best score first, each result takes the object of its class and image that it overlaps most and that is still free.
    """
    results = only_labelled(dataset, results)
    evaluation = run_cocoeval(dataset, results)
    kept, true_positive, objects, found = [], [], [], []
    for one in evaluation.evalImgs:
        if one is not None and one["aRng"] == list(evaluation.params.areaRng[0]):
            counts = ~one["dtIgnore"][0]
            kept += [results[i - 1] for i, counted in zip(one["dtIds"], counts, strict=True) if counted]  # ids from 1
            true_positive += list(one["dtMatches"][0][counts] > 0)
            by_id = {o["id"]: o for o in evaluation._gts[one["image_id"], one["category_id"]]}
            wanted = np.asarray(one["gtIgnore"]) == 0
            objects += [by_id[i] for i, counted in zip(one["gtIds"], wanted, strict=True) if counted]
            found += list(one["gtMatches"][0][wanted] > 0)
    return MatchedResults(kept, np.array(true_positive, bool), objects, np.array(found, bool))


def score_by_source(dataset: CocoDetections, results: list[dict]) -> dict:
    """`{"all": metrics, "by_source": {source: metrics}, "by_class": {name: AP50}}`, see `score`."""
    overall = score(dataset, results)
    by_class = overall.pop("by_class")
    by_source = ids_by_source(dataset.coco.loadImgs(dataset.ids))
    scores = {}
    for source, ids in by_source.items():
        scores[source] = score(dataset, results, ids) if len(by_source) > 1 else dict(overall)
        scores[source].pop("by_class", None)
    return {"all": overall, "by_source": scores, "by_class": by_class}


def operating_points(dataset: CocoDetections, results: list[dict], thresholds: list[float]) -> list[dict]:
    """Precision and recall at IoU 0.5 of the results above each score threshold, over all classes together.

    Both are 0 where there is nothing to divide by.   results: of `predict(…, class_agnostic=True)`, as people see them.
    Returns a dict of threshold, precision, recall and boxes (an image, on average) for each threshold.
    """
    matched = match_results(dataset, results)
    scores = np.array([result["score"] for result in matched.results])
    points = []
    for threshold in thresholds:
        drawn = scores > threshold
        boxes, true_positives = int(drawn.sum()), int(matched.true_positive[drawn].sum())
        point = {"threshold": threshold, "precision": true_positives / max(1, boxes)}
        point |= {"recall": true_positives / max(1, len(matched.objects)), "boxes": boxes / len(dataset.ids)}
        points.append(point)
    return points
