"""Protects label assignment: equal, image by image, to slow versions written from the papers' words."""

import pytest
import torch
from torchvision.ops import box_area, box_iou

from odutils.anchors import AnchorGrid, article_grid, pyramid_grid
from odutils.matching import BACKGROUND, IGNORED, match_atss, match_iou, pairwise_iou


def random_boxes(*shape, smallest=0.02, largest=0.6, seed=0):
    chance = torch.Generator().manual_seed(seed)
    size = smallest + (largest - smallest) * torch.rand(*shape, 2, generator=chance) ** 2
    corner = torch.rand(*shape, 2, generator=chance) * (1 - size)
    return torch.cat([corner, corner + size], dim=-1)


def scattered_grid(anchors=150):
    """Anchors without any order, so that no two overlap a box equally."""
    return AnchorGrid(random_boxes(anchors, seed=99), torch.full((anchors, 2), 0.1), (anchors,), "tanh")


def scene(images=6, objects=5, seed=0):
    """Boxes and labels with padding (0), ignored objects (-1), and one image without any object."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.randint(1, 81, (images, objects), generator=chance)
    labels[torch.rand(images, objects, generator=chance) < 0.2] = -1
    labels[1, 2:], labels[2] = 0, 0
    boxes = random_boxes(images, objects, seed=seed) * (labels != 0)[..., None]
    return boxes, labels


def share_covered(anchor, box):
    width = max(0.0, min(anchor[2], box[2]) - max(anchor[0], box[0]))
    height = max(0.0, min(anchor[3], box[3]) - max(anchor[1], box[1]))
    return width * height / ((anchor[2] - anchor[0]) * (anchor[3] - anchor[1]))


def ignore_what_is_left(match, anchors, boxes, labels, cover):
    for a, anchor in enumerate(anchors.tolist()):
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if label == -1 and match[a] == BACKGROUND and share_covered(anchor, box) > cover:
                match[a] = IGNORED
    return match


def slow_match_iou(anchors, boxes, labels, threshold=0.5, cover=0.5):
    """One image, SSD's section 2.2 in loops, the strongest claim first where objects want the same best anchor."""
    iou = box_iou(boxes, anchors).tolist()
    real = [m for m, label in enumerate(labels.tolist()) if label > 0]
    match = [BACKGROUND] * len(anchors)
    for a in range(len(anchors)):
        for m in real:
            if iou[m][a] > threshold and (match[a] == BACKGROUND or iou[m][a] > iou[match[a]][a]):
                match[a] = m
    claims = {}
    for m in real:
        a = iou[m].index(max(iou[m]))
        if iou[m][a] > 0 and (a not in claims or iou[m][a] > iou[claims[a]][a]):
            claims[a] = m
    for a, m in claims.items():
        match[a] = m
    return ignore_what_is_left(match, anchors, boxes, labels, cover)


def slow_match_atss(grid, boxes, labels, square, nearest=9, cover=0.5):
    """One image, algorithm 1 of Zhang et al. 2020 in loops; an object without a positive keeps its best candidate.

    square: (2,) the factors that turn 0…1 into units of equal length in x and y.
    """
    anchors = grid.boxes
    iou = box_iou(boxes, anchors)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    match, best_iou = [BACKGROUND] * len(anchors), [0.0] * len(anchors)
    for m, label in enumerate(labels.tolist()):
        if label <= 0:
            continue
        centre = (boxes[m, :2] + boxes[m, 2:]) / 2
        candidates, first = [], 0
        for count in grid.counts:  # lines 3 to 6: the k closest anchors of each level
            distance = ((centres[first : first + count] - centre) * square).norm(dim=1)
            candidates += [first + int(i) for i in distance.argsort()[:nearest]]
            first += count
        values = iou[m, candidates]
        threshold = values.mean() + values.std()  # lines 8 to 10
        positives = []
        for a, value in zip(candidates, values, strict=True):  # lines 11 to 15
            x, y = centres[a].tolist()
            x1, y1, x2, y2 = boxes[m].tolist()
            if value >= threshold and x1 < x < x2 and y1 < y < y2:
                positives.append(a)
        positives = positives or [candidates[int(values.argmax())]]
        for a in positives:  # "assigned to multiple ground truths: the one with the highest IoU"
            if iou[m, a] > best_iou[a]:
                match[a], best_iou[a] = m, float(iou[m, a])
    return ignore_what_is_left(match, anchors, boxes, labels, cover)


def test_pairwise_iou_equals_torchvisions():
    grid, boxes = scattered_grid(), random_boxes(3, 7)
    anchors = grid.boxes
    iou, shared = pairwise_iou(grid, boxes)
    for image in range(3):
        torch.testing.assert_close(iou[image], box_iou(boxes[image], anchors))
        expected = [[share_covered(a, b) for a in anchors.tolist()] for b in boxes[image].tolist()]
        torch.testing.assert_close(shared[image] / box_area(anchors), torch.tensor(expected), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_match_iou_equals_the_slow_version(seed):
    grid, (boxes, labels) = scattered_grid(), scene(objects=8, seed=seed)
    match = match_iou(grid, boxes, labels)
    for image in range(len(boxes)):
        assert match[image].tolist() == slow_match_iou(grid.boxes, boxes[image], labels[image])
    assert (match == IGNORED).any() and (match >= 0).any()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 192)])
def test_match_atss_equals_the_slow_version(seed, height, width):
    grid, (boxes, labels) = pyramid_grid(height, width), scene(seed=seed)
    match = match_atss(grid, boxes, labels)
    for image in range(len(boxes)):
        square = torch.tensor([width, height])
        assert match[image].tolist() == slow_match_atss(grid, boxes[image], labels[image], square)


@pytest.mark.parametrize("match", [match_iou, match_atss])
def test_objects_on_the_real_grids_get_positives(match):
    grid = article_grid() if match is match_iou else pyramid_grid(256, 256)
    boxes, labels = random_boxes(8, 3, smallest=0.05), torch.ones(8, 3, dtype=torch.int64)
    result = match(grid, boxes, labels)
    for image, matches in enumerate(result):
        overlap = box_iou(boxes[image], boxes[image]).fill_diagonal_(0).amax(dim=1)
        alone = (overlap < 0.05).nonzero().flatten().tolist()
        assert set(alone) <= set(matches.tolist())


@pytest.mark.parametrize("match", [match_iou, match_atss])
def test_no_objects_no_rows_and_only_padding_are_background(match):
    grid = pyramid_grid(64, 64)
    none = match(grid, torch.zeros(2, 0, 4), torch.zeros(2, 0, dtype=torch.int64))
    padding = match(grid, torch.zeros(2, 3, 4), torch.zeros(2, 3, dtype=torch.int64))
    for result in (none, padding):
        assert result.shape == (2, len(grid)) and result.dtype == torch.int64
        assert (result == BACKGROUND).all()


@pytest.mark.parametrize("match", [match_iou, match_atss])
def test_padding_changes_nothing(match):
    grid, (boxes, labels) = pyramid_grid(128, 128), scene()
    more_boxes = torch.cat([boxes, torch.zeros(len(boxes), 4, 4)], dim=1)
    more_labels = torch.cat([labels, torch.zeros(len(labels), 4, dtype=torch.int64)], dim=1)
    assert match(grid, boxes, labels).equal(match(grid, more_boxes, more_labels))


@pytest.mark.parametrize("match", [match_iou, match_atss])
def test_ignored_objects_are_never_matched_and_real_ones_inside_them_still_are(match):
    grid = pyramid_grid(128, 128)
    boxes = torch.tensor([[[0.0, 0.0, 1.0, 1.0], [0.1, 0.1, 0.5, 0.5]]])
    alone = match(grid, boxes[:, :1], torch.tensor([[-1]]))[0]
    inside = match(grid, boxes, torch.tensor([[-1, 7]]))[0]
    assert set(alone.tolist()) <= {BACKGROUND, IGNORED} and (alone == IGNORED).any()
    assert (inside == 1).any() and not (inside == 0).any()
    assert ((inside == IGNORED) | (inside == 1))[alone == IGNORED].all()


def grid_of(*anchors):
    return AnchorGrid(torch.tensor(anchors), torch.full((len(anchors), 2), 0.5), (len(anchors),), "tanh")


def test_two_objects_with_one_best_anchor_it_goes_to_the_better_whatever_their_order():
    grid = grid_of([0.0, 0.0, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0])
    worse, better = [0.0, 0.0, 0.25, 0.25], [0.0, 0.0, 0.25, 0.375]  # IoU 0.25 and 0.375, both below the threshold
    for boxes, winner in (([worse, better], 1), ([better, worse], 0)):
        assert match_iou(grid, torch.tensor([boxes]), torch.tensor([[1, 2]])).tolist() == [[winner, BACKGROUND]]


def test_a_forced_anchor_outranks_a_threshold_match_of_another_object():
    grid = grid_of([0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.625])
    large, small = [0.0, 0.0, 0.5, 0.625], [0.0, 0.0, 0.25, 0.375]  # `large` overlaps the first anchor by 0.8
    assert match_iou(grid, torch.tensor([[large, small]]), torch.tensor([[1, 2]])).tolist() == [[1, 0]]


def test_exact_ties_go_to_the_first_anchor_and_the_first_object():
    grid = grid_of([0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5])
    boxes = torch.tensor([[[0.0, 0.0, 0.25, 0.25], [0.25, 0.25, 0.5, 0.5]]])  # each a quarter of both anchors
    assert match_iou(grid, boxes, torch.tensor([[1, 2]])).tolist() == [[0, BACKGROUND]]
