"""Why detections are wrong, and what each kind of error costs: TIDE (Bolya et al. 2020, section 2).

A false detection belongs to the first kind whose test it passes; IoU is with the objects of its image:

    location    an object of its class, IoU 0.1 to 0.5: the box is poor
    class       an object of another class, IoU 0.5 or more: the name is wrong
    duplicate   an object of its class, IoU 0.5 or more, which a surer detection has found
    background  no object, or IoU 0.1 or less with each
    both        what is left: an object of another class, and the box is poor

An object is `missed` if it is neither found nor what a class or location error meant. Objects and detections are
COCO's dicts; D detections, G objects.
"""

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from odutils.evaluation import MatchedResults

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1  # IoU: of a box that is right, of one that has to do with an object


class Error(NamedTuple):
    """One thing that went wrong."""

    kind: str
    result: int | None  # index of the false detection; None if missed
    object: int | None  # index of the object that was meant, or missed; None for background and both


def find_errors(matched: MatchedResults) -> list[Error]:
    """The kind of every false detection, and the objects missed; the surest detections first."""
    from pycocotools.mask import iou

    in_image = defaultdict(list)
    for g, one in enumerate(matched.objects):
        in_image[one["image_id"]].append(g)
    errors = []
    for d in sorted(np.flatnonzero(~matched.right).tolist(), key=lambda d: -matched.results[d]["score"]):
        result = matched.results[d]
        there = in_image[result["image_id"]]
        boxes = [matched.objects[g]["bbox"] for g in there]
        overlap = iou([result["bbox"]], boxes, [0] * len(there))[0] if there else np.zeros(0)  # (objects there,)
        same = np.array([matched.objects[g]["category_id"] == result["category_id"] for g in there], bool)
        kind, nearest = kind_of(overlap, same)
        errors.append(Error(kind, d, None if nearest is None else there[nearest]))
    meant = {error.object for error in errors if error.kind in ("class", "location")}
    return errors + [Error("missed", None, g) for g in np.flatnonzero(~matched.found).tolist() if g not in meant]


def kind_of(overlap: np.ndarray, same: np.ndarray) -> tuple[str, int | None]:
    """The kind of one false detection, and which object it meant.

    overlap: (G,) IoU with the objects of its image.   same: (G,) bool, whether they are of its class.
    """
    own, other = overlap * same, overlap * ~same  # (G,) each
    if BACKGROUND <= own.max(initial=0) < FOREGROUND:
        return "location", int(own.argmax())
    if other.max(initial=0) >= FOREGROUND:
        return "class", int(other.argmax())
    if own.max(initial=0) >= FOREGROUND:
        return "duplicate", int(own.argmax())
    return ("background" if overlap.max(initial=0) <= BACKGROUND else "both"), None


def average_precision(right: np.ndarray, objects: int) -> float:
    """Interpolated precision, averaged over the recalls 0, 0.01 … 1 (Lin et al. 2014, as pycocotools does).

    right: (D,) bool, surest detection first.   objects: how many there are to find, at least one.
    """
    hits = np.cumsum(right)
    precision = hits / np.arange(1, len(hits) + 1)  # (D,)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]  # at this recall or a higher one
    reached = np.searchsorted(hits / objects, np.linspace(0, 1, 101))  # (101,) first detection with that recall
    return float(np.append(best_from_here, 0.0)[np.minimum(reached, len(hits))].mean())


def gains(matched: MatchedResults, errors: list[Error]) -> dict[str, float]:
    """By how much AP50 would rise if all errors of one kind were mended: TIDE's dAP, for each of KINDS.

    class, location: the surest error that meant an object not yet found becomes right, the others vanish. duplicate,
    background, both: they vanish. missed: these objects are no longer asked for. The six do not add up to what is
    lacking: errors hide one another. Classes without objects do not count, as in COCO. (In the authors' program an
    object meant by errors of both class and location can be mended by the surest alone; here by one of each kind.)
    """
    as_is = _mean_ap(matched)
    return {kind: _mean_ap(matched, [e for e in errors if e.kind == kind]) - as_is for kind in KINDS}


def _mean_ap(matched: MatchedResults, mended: list[Error] = ()) -> float:
    """AP50, the mean over the classes, after some errors of one kind are mended."""
    answers, count, taken = defaultdict(list), defaultdict(int), set()  # by class: (score, right), objects
    gone, unasked = {error.result for error in mended}, {e.object for e in mended if e.kind == "missed"}
    for d, (result, right) in enumerate(zip(matched.results, matched.right.tolist(), strict=True)):
        if d not in gone:
            answers[result["category_id"]].append((result["score"], right))
    for error in mended:  # surest first
        if error.kind in ("class", "location") and not matched.found[error.object] and error.object not in taken:
            taken.add(error.object)
            score = matched.results[error.result]["score"]
            answers[matched.objects[error.object]["category_id"]].append((score, True))
    for g, one in enumerate(matched.objects):
        count[one["category_id"]] += g not in unasked
    ranked = {category: sorted(answers[category], key=lambda answer: -answer[0]) for category in count}
    aps = [average_precision([right for _, right in ranked[c]], objects) for c, objects in count.items() if objects]
    return float(np.mean(aps)) if aps else 0.0
