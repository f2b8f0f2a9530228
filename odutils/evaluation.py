"""How good the detections of a data set are: COCO's metrics, by pycocotools.

A result is a dict in COCO's form: image_id, category_id, bbox [x, y, w, h] in pixels of the picture, score.
"""

import contextlib
import copy
import io

from torch import Tensor

from odutils.anchors import AnchorGrid
from odutils.datasets import CocoDetections
from odutils.errors import InputError
from odutils.inference import EVALUATED, Detections, Predictor, select, to_detections
from odutils.pictures import place

NAMES = ("AP", "AP50", "AP75", "small", "medium", "large")  # in the order of COCOeval.stats


def to_results(dataset: CocoDetections, index: int, found: Detections) -> list[dict]:
    """The detections of image `index` as COCO results; classes that its source does not label are left out."""
    known, image_id = dataset.known(index).numpy(), dataset.ids[index]
    return [
        {
            "image_id": image_id,
            "category_id": dataset.category_of[label],
            "bbox": [float(v) for v in (*box[:2], *(box[2:] - box[:2]))],
            "score": float(score),
        }
        for box, label, score in zip(found.boxes, found.labels.tolist(), found.scores, strict=True)
        if known[label - 1] and label in dataset.category_of
    ]


def predict(predictor: Predictor, dataset: CocoDetections, batch_size: int = 8) -> list[dict]:
    """Run the predictor over a data set. Returns COCO results."""
    results = []
    for first in range(0, len(dataset), batch_size):
        indices = range(first, min(first + batch_size, len(dataset)))
        pictures = [dataset._load_image(dataset.ids[index]) for index in indices]
        found_in_each = predictor.batch(pictures, threshold=EVALUATED, one_class_each=False)
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
        found = select(logits.float(), codes.float(), grid, EVALUATED, one_class_each=False)
        placement = place(*shape, dataset.size, dataset.squash)
        results += to_results(dataset, index, to_detections(*found, placement, shape))
    return results


def score(dataset: CocoDetections, results: list[dict], image_ids: list[int] | None = None) -> dict:
    """COCO's metrics by pycocotools: AP (IoU 0.50:0.95), AP50, AP75, AP of small, medium, large objects; -1: none.

    Crowds, difficult objects and classes that an image's source does not label count neither way. With them comes
    `by_class` {name: AP50}. image_ids: score these images only.
    Raises InputError if a result names another image or category.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    class Evaluation(COCOeval):
        def _prepare(self):  # pycocotools ignores crowds only
            super()._prepare()
            for objects in self._gts.values():
                for one in objects:
                    one["ignore"] = int(bool(one["ignore"] or one.get("difficult")))

    results = only_labelled(dataset, results)
    with contextlib.redirect_stdout(io.StringIO()):
        detected = dataset.coco.loadRes(copy.deepcopy(results)) if results else COCO()  # loadRes chokes on none
        evaluation = Evaluation(dataset.coco, detected, "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][0, :, :, 0, -1]  # (recalls, categories): IoU 0.5, any size, 100 detections
    names = [category["name"] for category in dataset.coco.loadCats(evaluation.params.catIds)]
    by_class = {name: float(p.mean()) for name, p in zip(names, precision.T, strict=True) if (p > -1).all()}
    return dict(zip(NAMES, map(float, evaluation.stats[:6]), strict=True)) | {"by_class": by_class}


def only_labelled(dataset: CocoDetections, results: list[dict]) -> list[dict]:
    """Results without those of classes that their image's source does not label: nobody knows if they are right."""
    known = {image_id: dataset.known(index).tolist() for index, image_id in enumerate(dataset.ids)}
    try:
        return [r for r in results if known[r["image_id"]][dataset.label_of[r["category_id"]] - 1]]
    except (KeyError, TypeError) as error:
        raise InputError(f"a result without or with an unknown image_id or category_id ({error!r})") from None


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
