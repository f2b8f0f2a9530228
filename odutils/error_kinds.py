"""Why detections are wrong, and what each kind of error costs: TIDE (Bolya et al. 2020, section 2).

A false positive is of the first kind whose test it passes; IoU is with the ground-truth objects of its image:

    localization    an object of its class, IoU 0.1 to 0.5: a poor bounding box
    classification  an object of another class, IoU 0.5 or more: the wrong class
    duplicate       an object of its class, IoU 0.5 or more, to which a detection of higher score is matched
    background      no object, or IoU 0.1 or less with each
    both            what is left: another class, and a poor bounding box

A false negative is `missed` unless a localization or classification error is about it. Objects and detections are
COCO's dicts; D detections, G objects.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from odutils.evaluation import MatchedResults

KINDS = ("classification", "localization", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # TIDE's IoU thresholds: at least for a match; at most for background


class Error(NamedTuple):
    """One false positive, or one missed object."""

    kind: str
    result: int | None  # index of the false positive; None if missed
    object: int | None  # index of the object that it is about, or that is missed; None for background and both


def find_errors(matched: MatchedResults) -> list[Error]:
    """The kind of every false positive, best score first, then the missed objects."""
    from pycocotools.mask import iou

    in_image = defaultdict(list)
    for g, one in enumerate(matched.objects):
        in_image[one["image_id"]].append(g)
    errors = []
    for d in sorted(np.flatnonzero(~matched.true_positive).tolist(), key=lambda d: -matched.results[d]["score"]):
        result = matched.results[d]
        there = in_image[result["image_id"]]
        boxes = [matched.objects[g]["bbox"] for g in there]
        overlap = iou([result["bbox"]], boxes, [0] * len(there))[0] if there else np.zeros(0)  # (objects there,)
        same = np.array([matched.objects[g]["category_id"] == result["category_id"] for g in there], bool)
        kind, nearest = kind_of(overlap, same)
        errors.append(Error(kind, d, None if nearest is None else there[nearest]))
    meant = {error.object for error in errors if error.kind in ("classification", "localization")}
    return errors + [Error("missed", None, g) for g in np.flatnonzero(~matched.found).tolist() if g not in meant]


def kind_of(overlap: np.ndarray, same: np.ndarray) -> tuple[str, int | None]:
    """The kind of one false positive, and the index of the object that it is about.

    overlap: (G,) IoU with the objects of its image.   same: (G,) bool, whether they are of its class.
    """
    own, other = overlap * same, overlap * ~same  # (G,) each
    if BACKGROUND <= own.max(initial=0) < FOREGROUND:
        return "localization", int(own.argmax())
    if other.max(initial=0) >= FOREGROUND:
        return "classification", int(other.argmax())
    if own.max(initial=0) >= FOREGROUND:
        return "duplicate", int(own.argmax())
    return ("background" if overlap.max(initial=0) <= BACKGROUND else "both"), None


def average_precision(true_positive: np.ndarray, objects: int) -> float:
    """Interpolated precision, averaged over the recalls 0, 0.01 … 1, as pycocotools does.

    true_positive: (D,) bool, for each detection, highest score first.   objects: TP + FN, at least one.
    """
    tp = np.cumsum(true_positive)
    precision = tp / np.arange(1, len(tp) + 1)  # (D,)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    reached = np.searchsorted(tp / objects, np.linspace(0, 1, 101))  # (101,) first detection with that recall
    return float(np.append(best_from_here, 0.0)[np.minimum(reached, len(tp))].mean())


def gains(matched: MatchedResults, errors: list[Error]) -> dict[str, float]:
    """By how much AP50 would rise if all errors of one kind were corrected: TIDE's dAP, for each of KINDS.

    classification, localization: for each object not yet found, the error of highest score about it becomes a true
    positive, the others are removed. duplicate, background, both: they are removed. missed: the objects are no longer
    counted. The six do not add up to what AP50 lacks: errors hide one another. Classes without objects do not count, as
    in COCO. (In the authors' program an object with errors of both kinds, classification and localization, is corrected
    by the highest score of them alone; here by one of each kind.)
    """
    as_is = _mean_ap(matched)
    return {kind: _mean_ap(matched, [e for e in errors if e.kind == kind]) - as_is for kind in KINDS}


def _mean_ap(matched: MatchedResults, corrected: list[Error] = ()) -> float:
    """AP50, the mean over the classes, after some errors of one kind, best score first, are corrected."""
    removed = {error.result for error in corrected}
    uncounted = {error.object for error in corrected if error.kind == "missed"}
    scored = defaultdict(list)  # by class: (score, true positive) of each detection
    for d, (result, true_positive) in enumerate(zip(matched.results, matched.true_positive.tolist(), strict=True)):
        if d not in removed:
            scored[result["category_id"]].append((result["score"], true_positive))
    found_now = set()
    for error in corrected:
        if (
            error.kind in ("classification", "localization")
            and not matched.found[error.object]
            and error.object not in found_now
        ):
            found_now.add(error.object)
            score = matched.results[error.result]["score"]
            scored[matched.objects[error.object]["category_id"]].append((score, True))
    count = defaultdict(int)  # by class: objects
    for g, one in enumerate(matched.objects):
        count[one["category_id"]] += g not in uncounted
    ranked = {category: sorted(scored[category], key=lambda entry: -entry[0]) for category in count}
    aps = [average_precision([true for _, true in ranked[c]], objects) for c, objects in count.items() if objects]
    return float(np.mean(aps)) if aps else 0.0
