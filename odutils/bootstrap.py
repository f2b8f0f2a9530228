"""95 % confidence intervals (bootstrap over images) of AP, and of the difference of two detectors on the same images.

Images are drawn with repetition, as many as there are, and both detectors are scored on the same draw (Efron 1979; in
pairs, because an image that is hard for one is mostly hard for the other).
"""

from collections.abc import Iterator

import numpy as np

from odutils.coco.reading import ids_by_source
from odutils.datasets import CocoDetections
from odutils.evaluation import only_labelled, run_cocoeval
from odutils.progress import bar

DRAWS = 1000


class Matches:
    """What AP is made of, sorted once, so that a draw costs some sums: a weight for each image is enough."""

    def __init__(self, dataset: CocoDetections, results: list[dict], image_ids: list[int]):
        evaluation = run_cocoeval(dataset, only_labelled(dataset, results), image_ids)
        params, position = evaluation.params, {id_: place for place, id_ in enumerate(evaluation.params.imgIds)}
        self.images, self.recalls, self.classes = len(position), params.recThrs, []
        of_class: dict[int, list[dict]] = {}
        for one in evaluation.evalImgs:
            if one is not None and one["aRng"] == list(params.areaRng[0]):
                of_class.setdefault(one["category_id"], []).append(one)
        for parts in of_class.values():
            places = [position[part["image_id"]] for part in parts]
            objects = np.zeros(self.images)  # ground truth that counts
            np.add.at(objects, places, [np.sum(np.asarray(part["gtIgnore"]) == 0) for part in parts])
            scores = np.concatenate([part["dtScores"] for part in parts])  # (D,)
            order = np.argsort(-scores, kind="mergesort")
            matched = np.concatenate([part["dtMatches"] for part in parts], axis=1)[:, order] > 0  # (T, D)
            counts = ~np.concatenate([part["dtIgnore"] for part in parts], axis=1)[:, order].astype(bool)
            image = np.repeat(places, [len(part["dtScores"]) for part in parts]).astype(int)[order]  # (D,)
            self.classes.append((objects, image, matched & counts, ~matched & counts))

    def score(self, weights: np.ndarray) -> tuple[float, float]:
        """AP and AP50 when image i counts weights[i] times (images,), as pycocotools' `accumulate` defines them."""
        values = []
        for objects, image, true, false in self.classes:
            total = (objects * weights).sum()
            if total > 0:
                weight = weights[image]  # (D,)
                true_positives, false_positives = (true * weight).cumsum(axis=1), (false * weight).cumsum(axis=1)
                recall = true_positives / total
                precision = true_positives / np.maximum(true_positives + false_positives, np.spacing(1))  # (T, D)
                precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
                precision = np.pad(precision, ((0, 0), (0, 1)))  # 0 beyond the highest recall
                places = [np.searchsorted(row, self.recalls, side="left") for row in recall]
                values.append([row[place].mean() for row, place in zip(precision, places, strict=True)])
        if not values:
            return -1.0, -1.0  # no object to find: pycocotools' way to say so
        means = np.mean(values, axis=0)  # (T,): over classes
        return float(means.mean()), float(means[0])


def measure(
    dataset: CocoDetections, results_of: list[list[dict]], draws: int = DRAWS, seed: int = 0, progress: bool = False
) -> dict:
    """{part: {"AP": [(value, half), …], "AP50": the same}}, for each detector, then for the first minus the second.

    part: "all" images, and each source of images where there are several.   progress: show a bar.
    half: of an interval that holds 95 % of a normal distribution as wide as that of the draws. (Its middle would not
    do: a draw lacks some of the images with rare classes, has others twice, and so has a higher AP on average.)
    Draws without an object have no AP, and are left out.
    """
    ids_of = ids_by_source(dataset.coco.loadImgs(dataset.ids))
    if len(ids_of) > 1:
        ids_of = {"all": dataset.ids} | ids_of
    report = {}
    with bar(total=draws * len(ids_of), unit="draws", show=progress) as shown:
        for source, ids in ids_of.items():
            matches = [Matches(dataset, results, ids) for results in results_of]
            scores = [[m.score(np.ones(len(ids))) for m in matches]]  # of the images as they are, then of the draws
            for weights in drawn_weights(len(ids), draws, seed):
                scores.append([m.score(weights) for m in matches])
                shown.update()
            report[source] = intervals(np.array(scores))
    return report


def drawn_weights(images: int, draws: int, seed: int = 0) -> Iterator[np.ndarray]:
    """How often each image comes in a draw (images,), for each of the draws."""
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        yield np.bincount(rng.integers(images, size=images), minlength=images).astype(float)


def intervals(scores: np.ndarray) -> dict[str, list]:
    """{"AP": [(value, half), …], "AP50": …} of a part.   scores: (1 + draws, detectors, 2), -1 where there is no AP."""
    has_objects = (scores >= 0).all(axis=(1, 2))  # (1 + draws,)
    if scores.shape[1] > 1:
        scores = np.concatenate([scores, scores[:, :1] - scores[:, 1:2]], axis=1)
    drawn = scores[1:][has_objects[1:]]
    halves = 1.96 * drawn.std(axis=0) if len(drawn) else np.zeros_like(scores[0])  # (detectors, 2)
    pairs = np.stack([scores[0], halves], axis=-1)  # (detectors, 2, 2)
    return {"AP": pairs[:, 0].tolist(), "AP50": pairs[:, 1].tolist()}


def describe(report: dict) -> str:
    """What `measure` says of one detector, for people: a line for each source."""
    lines = []
    for source, metrics in report.items():
        if metrics["AP"][0][0] < 0:
            continue
        values = ", ".join(f"{name} {rows[0][0]:.3f} ± {rows[0][1]:.3f}" for name, rows in metrics.items())
        lines.append(f"{source}: {values} (95 % confidence intervals, bootstrap over images)")
    return "\n".join(lines)
