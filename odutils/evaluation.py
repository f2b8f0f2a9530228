"""How good the detections of a data set are: COCO's metrics, by pycocotools.

A result is a dict in COCO's form: image_id, category_id, bbox [x, y, w, h] in pixels of the image, score.
"""

import contextlib
import copy
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from odutils.anchors import AnchorGrid
from odutils.datasets import CocoDetections
from odutils.errors import InputError
from odutils.images import place
from odutils.inference import EVALUATED, Detections, Predictor, select, to_detections

NAMES = ("AP", "AP50", "AP75", "small", "medium", "large")  # in the order of COCOeval.stats


class MatchedResults(NamedTuple):
    """What pycocotools made of a data set at IoU 0.5, without all that counts neither way."""

    results: list[dict]  # D, in pycocotools' order: by class, by image, by score
    right: np.ndarray  # (D,) bool: it found an object
    objects: list[dict]  # G
    found: np.ndarray  # (G,) bool


def to_results(dataset: CocoDetections, index: int, found: Detections) -> list[dict]:
    """The detections of image `index` as COCO results; classes that the data set's file does not have are left out."""
    image_id = dataset.ids[index]
    return [
        {
            "image_id": image_id,
            "category_id": dataset.category_of[label],
            "bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))],
            "score": float(score),
        }
        for box, label, score in zip(found.boxes, found.labels.tolist(), found.scores, strict=True)
        if label in dataset.category_of
    ]


def predict(
    predictor: Predictor,
    dataset: CocoDetections,
    batch_size: int = 8,
    class_agnostic: bool = False,
    progress: Callable[[Sequence], Iterable] = iter,
) -> list[dict]:
    """Run the predictor over a data set. Returns COCO results.

    class_agnostic: see `inference.select`.   progress: wraps the range of the batches' first images.
    """
    results = []
    for first in progress(range(0, len(dataset), batch_size)):
        indices = range(first, min(first + batch_size, len(dataset)))
        images = [dataset.image(index) for index in indices]
        found_in_each = predictor.batch(images, threshold=EVALUATED, class_agnostic=class_agnostic)
        for index, found in zip(indices, found_in_each, strict=True):
            results += to_results(dataset, index, found)
    return results


def results_of_batch(
    dataset: CocoDetections, first: int, predictions: tuple[Tensor, Tensor], grid: AnchorGrid
) -> list[dict]:
    """COCO results of a batch that the data set itself made, its images numbered from `first`."""
    results = []
    for index, (logits, codes) in enumerate(zip(*predictions, strict=True), start=first):
        image = dataset.coco.imgs[dataset.ids[index]]
        shape = (image["height"], image["width"])
        found = select(logits.float(), codes.float(), grid, EVALUATED, class_agnostic=False)
        placement = place(*shape, dataset.size, dataset.squash)
        results += to_results(dataset, index, to_detections(*found, placement, shape))
    return results


def score(dataset: CocoDetections, results: list[dict], image_ids: list[int] | None = None) -> dict:
    """COCO's metrics by pycocotools: AP (IoU 0.50:0.95), AP50, AP75, AP of small, medium, large objects; -1: none.

    Crowds, difficult objects and classes that an image's source does not label count neither way. With them comes
    `by_class` {name: AP50}. image_ids: score these images only.
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
    """pycocotools' COCOeval, with every detection matched to the objects (`evalImgs`); difficult ones are ignored."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        def _prepare(self):  # pycocotools ignores crowds only, and takes an object with id 0 for one not found
            super()._prepare()
            numbers = itertools.count(1)
            for key, objects in self._gts.items():
                ignored = (int(bool(one["ignore"] or one.get("difficult"))) for one in objects)
                self._gts[key] = [o | {"ignore": i, "id": next(numbers)} for o, i in zip(objects, ignored, strict=True)]

    with contextlib.redirect_stdout(io.StringIO()):
        detected = dataset.coco.loadRes(copy.deepcopy(results)) if results else COCO()  # loadRes chokes on none
        evaluation = Evaluation(dataset.coco, detected, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
    return evaluation


def only_labelled(dataset: CocoDetections, results: list[dict]) -> list[dict]:
    """Results without those of classes that their image's source does not label: nobody knows if they are right."""
    known = {image_id: dataset.known(index).tolist() for index, image_id in enumerate(dataset.ids)}
    try:
        return [r for r in results if known[r["image_id"]][dataset.label_of[r["category_id"]] - 1]]
    except (KeyError, TypeError) as error:
        raise InputError(f"a result without or with an unknown image_id or category_id ({error!r})") from None


def match_results(dataset: CocoDetections, results: list[dict]) -> MatchedResults:
    """Match COCO results to the objects as `score` does. Raises InputError for results of other images."""
    results = only_labelled(dataset, results)
    evaluation = run_cocoeval(dataset, results)
    kept, right, objects, found = [], [], [], []
    for one in evaluation.evalImgs:
        if one is not None and one["aRng"] == list(evaluation.params.areaRng[0]):
            counts = ~one["dtIgnore"][0]
            kept += [results[i - 1] for i, counted in zip(one["dtIds"], counts, strict=True) if counted]  # ids from 1
            right += list(one["dtMatches"][0][counts] > 0)
            by_id = {o["id"]: o for o in evaluation._gts[one["image_id"], one["category_id"]]}
            wanted = np.asarray(one["gtIgnore"]) == 0
            objects += [by_id[i] for i, counted in zip(one["gtIds"], wanted, strict=True) if counted]
            found += list(one["gtMatches"][0][wanted] > 0)
    return MatchedResults(kept, np.array(right, bool), objects, np.array(found, bool))


def score_by_source(dataset: CocoDetections, results: list[dict]) -> dict:
    """`{"all": metrics, "by_source": {source: metrics}, "by_class": {name: AP50}}`, see `score`."""
    overall = score(dataset, results)
    by_source: dict[str, list[int]] = {}
    for image_id in dataset.ids:
        by_source.setdefault(dataset.coco.imgs[image_id].get("source", "all"), []).append(image_id)
    by_class = overall.pop("by_class")
    scores = {}
    for source, image_ids in by_source.items():
        scores[source] = score(dataset, results, image_ids)
        scores[source].pop("by_class")
    return {"all": overall, "by_source": scores, "by_class": by_class}


def operating_points(dataset: CocoDetections, results: list[dict], thresholds: list[float]) -> list[dict]:
    """What a person sees at a score threshold: the share of drawn boxes that are right, and of objects that are found.

    A box is right if it has the class of an object that it overlaps at IoU 0.5 or more; each object is found but once.
    Boxes on crowds and difficult objects count neither way. Results: of `predict(…, class_agnostic=True)`.
    Returns a dict of threshold, precision, recall and boxes (an image) for each threshold.
    """
    matched = match_results(dataset, results)
    scores, right = np.array([result["score"] for result in matched.results]), matched.right
    points = []
    for threshold in thresholds:
        drawn = scores > threshold
        hits = float(right[drawn].sum())
        precision, recall = hits / max(1, int(drawn.sum())), hits / max(1, len(matched.objects))
        points.append(
            dict(threshold=threshold, precision=precision, recall=recall, boxes=float(drawn.sum()) / len(dataset.ids))
        )
    return points
