"""Protects the merge of tiles' detections: each object once, whatever a seam cuts, and two objects never as one."""

import numpy as np
import pytest
import torch

from odutils import merging
from odutils.merging import merge
from odutils.tiling import place_views

# ---- one detection an object: rules by hand. Tiles of 100 px, which overlap by 20; the first view is the whole image

ROW, LONG_ROW, SQUARE = (100, 180), (100, 260), (180, 180)  # (height, width) of images with tiles A B, A B C, A B / C D
W, A, B, C, D = range(5)


def merged(shape, tiles, *detections, **options):
    """[(x1, y1, x2, y2, label, score)] of detections (view, box in the image, score, label = 1) after the merge."""
    views = place_views(*shape, tiles, 100)
    found = []
    for number, view in enumerate(views):
        mine = [(*one, 1)[:4] for one in detections if one[0] == number]
        boxes = np.float32([one[1] for one in mine]).reshape(-1, 4) - np.tile(view[:2], 2)
        assert (boxes >= 0).all() and (boxes <= np.tile(view[2:] - view[:2], 2)).all(), "outside of its view"
        found.append((boxes.astype(np.float32), np.int64([one[3] for one in mine]), np.float32([o[2] for o in mine])))
    boxes, labels, scores = merge(views, found, 100, **options)
    assert (boxes.dtype, labels.dtype, scores.dtype) == (np.float32, np.int64, np.float32)
    assert (np.diff(scores) <= 0).all()
    return [
        (*box, label, round(score, 4))
        for box, label, score in zip(*map(np.ndarray.tolist, (boxes, labels, scores)), strict=True)
    ]


def test_the_layouts_by_hand():
    assert place_views(*ROW, 2, 100).tolist() == [[0, 0, 180, 100], [0, 0, 100, 100], [80, 0, 180, 100]]
    assert place_views(*LONG_ROW, 3, 100)[1:, 0].tolist() == [0, 80, 160]
    assert place_views(*SQUARE, 2, 100)[1:, :2].tolist() == [[0, 0], [80, 0], [0, 80], [80, 80]]


def test_nothing_found_anywhere():
    assert merged(ROW, 2) == []


def test_what_several_views_see_whole_is_there_once():
    same = [(W, (20, 20, 50, 60), 0.6), (A, (21, 20, 50, 61), 0.8)]
    assert merged(ROW, 2, *same) == [(21, 20, 50, 61, 1, 0.8)]
    assert merged(ROW, 2, (A, (89, 20, 91, 40), 0.8), (B, (89, 20, 91, 40), 0.7)) == [(89, 20, 91, 40, 1, 0.8)]
    assert len(merged(ROW, 2, *same, iou_threshold=0.99, class_agnostic=False)) == 2


def test_halves_at_a_seam_are_joined():
    """Also where little of either lies in the overlap, and where the object ends in it."""
    for left, right in ((50, 130), (10, 170), (70, 110), (82, 130)):
        halves = (A, (left, 20, 100, 60), 0.6), (B, (max(80, left), 21, right, 60), 0.7)
        assert merged(ROW, 2, *halves) == [(left, 20, right, 60, 1, 0.7)]


@pytest.mark.parametrize("score", [0.2, 0.9])
def test_pieces_of_an_object_that_is_seen_whole_belong_to_it(score):
    """Whether the pieces have a lower score or a higher one."""
    whole, best = (W, (10, 20, 170, 60), 0.5), max(score, 0.5)
    pieces = (A, (10, 22, 100, 60), score), (B, (80, 22, 170, 60), score)
    assert merged(ROW, 2, whole, *pieces) == [(10, 20, 170, 60, 1, best)]
    assert merged(ROW, 2, whole, (A, (40, 22, 98, 50), score)) == [(10, 20, 170, 60, 1, best)]  # half of the piece
    at_the_seam = (A, (86, 20, 100, 60), score), (B, (89, 20, 119, 60), 0.5)
    assert merged(ROW, 2, *at_the_seam) == [(89, 20, 119, 60, 1, best)]


def test_the_best_whole_detection_gives_the_box():
    three = (W, (20, 20, 120, 60), 0.5), (B, (89, 22, 125, 60), 0.6), (A, (84, 20, 100, 60), 0.9)
    assert merged(ROW, 2, *three) == [(89, 22, 125, 60, 1, 0.9), (20, 20, 120, 60, 1, 0.5)]


def test_a_piece_is_not_joined_to_what_covers_less_than_half_of_it():
    found = merged(ROW, 2, (A, (40, 20, 100, 60), 0.7), (W, (75, 20, 130, 60), 0.6))
    assert found == [(40, 20, 100, 60, 1, 0.7), (75, 20, 130, 60, 1, 0.6)]
    half = merged(ROW, 2, (A, (40, 20, 100, 60), 0.7), (W, (70, 20, 130, 60), 0.6))
    assert half == [(70, 20, 130, 60, 1, 0.7)]


@pytest.mark.parametrize("lower, objects", [(11, 1), (16, 2)])  # px: IoU of 0.57 and 0.43 in the strip
def test_pieces_that_agree_by_less_than_half_are_not_joined(lower, objects):
    assert len(merged(ROW, 2, (A, (50, 10, 100, 50), 0.8), (B, (80, 10 + lower, 130, 50 + lower), 0.6))) == objects


def test_two_people_side_by_side_in_the_overlap_stay_two():
    first, second = (66, 10, 90, 90), (89.5, 10, 114, 90)
    seen = [(A, first, 0.8), (A, (89.5, 10, 100, 90), 0.5), (B, (80, 10, 90, 90), 0.6), (B, second, 0.7)]
    assert merged(ROW, 2, *seen) == [(*first, 1, 0.8), (*second, 1, 0.7)]
    assert merged(ROW, 2, *seen, (W, first, 0.9), (W, second, 0.4)) == [(*first, 1, 0.9), (*second, 1, 0.7)]


def test_two_people_that_overlap_at_a_seam_get_their_own_halves():
    seen = [(A, (50, 10, 100, 90), 0.8), (A, (85, 12, 100, 92), 0.5)]
    seen += [(B, (80, 10, 105, 90), 0.6), (B, (85, 12, 135, 92), 0.7)]
    assert merged(ROW, 2, *seen) == [(50, 10, 105, 90, 1, 0.8), (85, 12, 135, 92, 1, 0.7)]


def test_a_piece_whose_partner_agrees_better_with_another_stays_alone():
    """One person's half is missed: the other half must not be joined to the neighbour's."""
    seen = (A, (50, 10, 100, 50), 0.8), (A, (60, 20, 100, 60), 0.7), (B, (80, 10, 130, 50), 0.6)
    assert merged(ROW, 2, *seen) == [(50, 10, 130, 50, 1, 0.8), (60, 20, 100, 60, 1, 0.7)]


def test_a_piece_that_two_whole_objects_cover_joins_them_not():
    whole = [(W, (50, 10, 150, 50), 0.8), (W, (50, 30, 150, 70), 0.7)]
    assert merged(ROW, 2, *whole, (A, (50, 31, 100, 49), 0.9)) == [
        (50, 10, 150, 50, 1, 0.9),
        (50, 30, 150, 70, 1, 0.7),
    ]
    below = merged(ROW, 2, *whole, (A, (50, 30, 100, 68), 0.9))  # agrees with the lower one
    assert below == [(50, 30, 150, 70, 1, 0.9), (50, 10, 150, 50, 1, 0.8)]


def test_a_chain_of_three_pieces_is_one_object():
    chain = (A, (20, 20, 100, 60), 0.6), (B, (80, 20, 180, 60), 0.5), (C, (160, 20, 240, 60), 0.4)
    assert merged(LONG_ROW, 3, *chain) == [(20, 20, 240, 60, 1, 0.6)]
    assert merged(LONG_ROW, 3, *chain, (W, (15, 20, 250, 66), 0.3)) == [(15, 20, 250, 66, 1, 0.6)]


def test_four_tiles_at_a_corner():
    pieces = [(A, (60, 50, 100, 100), 0.5), (B, (80, 50, 125, 100), 0.6)]
    pieces += [(C, (60, 80, 100, 140), 0.7), (D, (80, 80, 125, 140), 0.4)]
    assert merged(SQUARE, 2, *pieces) == [(60, 50, 125, 140, 1, 0.7)]
    assert merged(SQUARE, 2, *pieces[:2], pieces[3]) == [(60, 50, 125, 140, 1, 0.6)]  # one view misses it


def test_edges_of_the_image_cut_nothing():
    """Both end at the image's edge, and the whole image shows more of one: two detections, as NMS has it."""
    assert len(merged(ROW, 2, (A, (0, 0, 40, 100), 0.8), (W, (0, 0, 95, 100), 0.7))) == 2
    assert len(merged(ROW, 2, (A, (60, 0, 100, 100), 0.8), (W, (0, 0, 100, 100), 0.7))) == 1


def test_classes_are_kept_apart():
    halves = (A, (50, 20, 100, 60), 0.6, 1), (B, (80, 20, 130, 60), 0.7, 2)
    assert [one[4] for one in merged(ROW, 2, *halves)] == [2, 1]
    names = (W, (20, 20, 50, 60), 0.6, 1), (A, (20, 20, 50, 60), 0.8, 2)
    assert [one[4] for one in merged(ROW, 2, *names)] == [2]
    assert [one[4] for one in merged(ROW, 2, *names, class_agnostic=False)] == [2, 1]


def test_a_piece_of_another_class_is_another_name_for_what_is_seen_whole():
    """Whatever its score, where boxes of different classes compete; a smaller object before the large one stays."""
    seen = (W, (10, 20, 170, 60), 0.5, 1), (A, (12, 20, 100, 62), 0.9, 2), (A, (70, 30, 99, 60), 0.4, 3)
    assert [one[4] for one in merged(ROW, 2, *seen)] == [1, 3]
    assert [one[4] for one in merged(ROW, 2, *seen, class_agnostic=False)] == [2, 1, 3]


def test_the_best_detections_are_returned():
    row = [(W, (10 + 20 * i, 20, 25 + 20 * i, 60), 0.1 * (i + 1)) for i in range(6)]
    assert [one[5] for one in merged(ROW, 2, *row, max_detections=2)] == [0.6, 0.5]
    with pytest.raises(ValueError, match="max_detections is 0"):
        merged(ROW, 2, *row, max_detections=0)


@pytest.mark.parametrize("limit, count", [(0, 1), (1, 5)])
def test_the_limits_of_nms_hold_among_whole_detections(limit, count):
    """At 0 no two of a class overlap; at 1 even what is found twice stays twice."""
    seen = [(W, (20, 20, 50, 60), 0.8), (A, (20, 20, 50, 60), 0.7), (W, (25, 20, 55, 60), 0.6)]
    seen += [(W, (49, 20, 70, 60), 0.5), (A, (49, 20, 70, 60), 0.4)]
    assert len(merged(ROW, 2, *seen, iou_threshold=limit, class_agnostic=False)) == count


# ---- one detection an object: a literal version


def area(box):
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def common(a, b):
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def iou(a, b):
    shared = area(common(a, b))
    return shared / max(1e-9, area(a) + area(b) - shared)


def suppress(found, same_class, limit):
    kept = []
    for one in sorted(found, key=lambda one: -one["score"]):
        if all((one["label"] != o["label"] and same_class) or iou(one["box"], o["box"]) <= limit for o in kept):
            kept.append(one)
    return kept


def merge_literally(views, found, size, class_agnostic):
    everything = []
    reach = 8 * max(views[1][2] - views[1][0], views[1][3] - views[1][1]) / size
    for number, (view, detections) in enumerate(zip(views.tolist(), found, strict=True)):
        for box, label, score in zip(*map(np.ndarray.tolist, detections), strict=True):
            box = [box[0] + view[0], box[1] + view[1], box[2] + view[0], box[3] + view[1]]
            cut = any(view[s] != views[0][s] and abs(box[s] - view[s]) <= reach for s in range(4))
            everything.append(dict(box=box, label=label, score=score, view=number, cut=cut))
    for one in everything:
        one["window"] = views[one["view"]].tolist()
    related = lambda a, b: a["label"] == b["label"] and a["view"] != b["view"]  # noqa: E731
    agreement = lambda a, b: iou(common(a["box"], b["window"]), common(b["box"], a["window"]))  # noqa: E731
    everything.sort(key=lambda one: -one["score"])
    whole, left = [one for one in everything if not one["cut"]], []
    kept = suppress(whole, True, 0.5)
    scores = [one["score"] for one in kept]

    def owner(piece, candidates):
        found = [
            (agreement(piece, one), -index)
            for index, one in enumerate(candidates)
            if related(piece, one) and area(common(piece["box"], one["box"])) >= 0.5 * area(piece["box"])
        ]
        return -max(found)[1] if found else None

    for piece in (one for one in everything if one["cut"]):
        index = owner(piece, whole)
        if index is None:
            names = [one for one in whole if class_agnostic and one["view"] != piece["view"]]
            left += [piece] * all(agreement(piece, one) <= 0.7 for one in names)
        else:
            home = kept.index(whole[index]) if whole[index] in kept else owner(whole[index], kept)
            if home is not None:
                scores[home] = max(scores[home], piece["score"])
    groups = [{index} for index in range(len(left))]
    for i, a in enumerate(left):
        for j, b in enumerate(left):
            ab = agreement(a, b) if related(a, b) else 0
            rivals = [agreement(a, c) for c in left if c["view"] == b["view"] and related(a, c)]
            rivals += [agreement(c, b) for c in left if c["view"] == a["view"] and related(c, b)]
            if ab >= 0.5 and ab == max(rivals):
                both = next(g for g in groups if i in g) | next(g for g in groups if j in g)
                groups = [g for g in groups if not g & both] + [both]
    results = [one | {"score": score} for one, score in zip(kept, scores, strict=True)]
    for group in groups:
        boxes = np.array([left[i]["box"] for i in group])
        hull = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
        score = max(left[i]["score"] for i in group)
        results.append(dict(box=hull, score=score, label=left[min(group)]["label"]))
    results = suppress(results, True, 0.5)
    return suppress(results, False, 0.7) if class_agnostic else results


@pytest.mark.parametrize("seed", range(12))
def test_merge_equals_the_literal_version(seed, monkeypatch):
    """On random objects as their views see them, with noise; and in whatever blocks the pairs are compared."""
    chance = np.random.default_rng(seed)
    shape, count = ((200, 300), (300, 180))[seed % 2], 2 + seed % 3
    views = place_views(*shape, count, 100)
    corners = chance.uniform(0, 0.9, (25, 2)) * shape[::-1]
    objects = np.hstack([corners, corners + chance.uniform(8, 150, (25, 2))])
    found = []
    for view in views:
        boxes = (objects + chance.normal(0, 2, objects.shape)).clip([*view[:2]] * 2, [*view[2:]] * 2) - [*view[:2]] * 2
        seen = ((boxes[:, 2:] - boxes[:, :2]) > 3).all(axis=1) & (chance.random(25) < 0.8)
        found.append((boxes[seen].astype(np.float32), np.arange(25)[seen] % 3, chance.random(seen.sum()).astype("f4")))
    for class_agnostic in (True, False):
        expected = merge_literally(views, found, 100, class_agnostic)
        for pairs in (merging.PAIRS, 150):
            monkeypatch.setattr(merging, "PAIRS", pairs)
            boxes, labels, scores = merge(views, found, 100, class_agnostic=class_agnostic)
            assert labels.tolist() == [one["label"] for one in expected]
            assert np.allclose(scores, [one["score"] for one in expected], atol=1e-6)
            assert np.allclose(boxes, [one["box"] for one in expected], atol=1e-3)
    assert len(expected) > 10


# ---- in bounded memory


def test_views_with_high_numbers_need_no_more_memory():
    """Two halves, of which the second is of a view with a number for which no memory would do."""
    view, window = torch.tensor([3, 10**12]), torch.tensor([[0, 0, 100, 100], [80, 0, 180, 100]])
    halves = torch.tensor([[50.0, 20, 100, 60], [80, 20, 130, 60]], dtype=torch.float64)
    pieces = merging.Found(halves, torch.ones(2).long(), torch.tensor([0.5, 0.75]).double(), view, window)
    boxes, _, scores = merging.join(pieces)
    assert boxes.tolist() == [[50, 20, 130, 60]] and scores.tolist() == [0.75]


def test_tens_of_thousands_of_detections_are_merged_in_bounded_blocks(monkeypatch):
    """Of 80,000 the best are compared; no block of pairs is larger than asked for."""
    views = place_views(8000, 12500, "auto", 416)
    chance = np.random.default_rng(0)
    found, largest = [], []
    for view in views:
        corner = chance.random((90, 2)) * (view[2:] - view[:2] - 30)
        boxes = np.hstack([corner, corner + chance.uniform(5, 30, (90, 2))]).astype(np.float32)
        found.append((boxes, chance.integers(1, 4, 90), chance.random(90).astype(np.float32)))
    shared_area = merging.shared_area
    monkeypatch.setattr(
        merging, "shared_area", lambda *boxes: largest.append((out := shared_area(*boxes)).numel()) or out
    )
    boxes, _, scores = merge(views, found, 416)
    assert len(scores) == 100 and scores.min() > 0.99
    assert len(views) * 90 > 80_000 and 10_000 < max(largest) <= merging.PAIRS
