"""Protects anchor-free detection: where points stand, that boxes survive encoding, and which points become positives.

The assignment equals a slow version in loops; away from its two deliberate differences it equals torchvision's FCOS.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_matching import random_boxes, scene
from torchvision.models.detection import FCOS

from odutils import matching
from odutils.__main__ import main
from odutils.anchors import pyramid_grid
from odutils.losses import DetectionLoss
from odutils.matching import BACKGROUND, IGNORED, match_atss, match_iou, match_points
from odutils.points import PYRAMID_STRIDES, PointGrid, point_grid
from odutils.presets import build, load_detector, save_detector

SHAPES = [(64, 64), (128, 192), (320, 64), (100, 64)]
WHOLE = torch.tensor([0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_a_point_stands_in_the_middle_of_every_cell_where_the_pyramids_anchors_do(height, width):
    grid, anchors = point_grid(height, width), pyramid_grid(height, width)
    torch.testing.assert_close(grid.centres, anchors.centres)
    assert grid.steps.equal(anchors.steps) and grid.counts == anchors.counts and len(grid) == len(anchors)
    expected = [number for number, count in enumerate(grid.counts) for _ in range(count)]
    assert grid.levels.tolist() == expected
    pixels = grid.level_steps * torch.tensor([width, height])
    torch.testing.assert_close(pixels, torch.tensor(PYRAMID_STRIDES)[:, None].expand(4, 2).float())


def test_other_strides_give_other_levels():
    grid = point_grid(64, 128, (4, 8, 16))
    assert grid.counts == (16 * 32, 8 * 16, 4 * 8)
    assert (grid.level_steps[:, 1] * 64).tolist() == [4, 8, 16]


@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_points_decode_as_the_pyramids_anchors_do(height, width):
    grid, anchors = point_grid(height, width), pyramid_grid(height, width)
    codes = torch.randn(2, len(grid), 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(grid.decode(codes), anchors.decode(codes))
    index = torch.tensor([3, 0, 3, len(grid) - 1])
    torch.testing.assert_close(grid.pick(index).decode(codes[:, index]), grid.decode(codes)[:, index])


side = st.floats(0.01, 30.0)


@settings(max_examples=60, deadline=None)
@given(x1=side, y1=side, x2=side, y2=side)
def test_every_box_around_a_point_survives_encoding(x1, y1, x2, y2):
    grid = PointGrid(torch.tensor([[0.4, 0.4]]), torch.tensor([[0.05, 0.1]]), (1,))
    box = torch.tensor([[0.4 - 0.05 * x1, 0.4 - 0.1 * y1, 0.4 + 0.05 * x2, 0.4 + 0.1 * y2]])
    torch.testing.assert_close(grid.decode(grid.encode(box)), box, atol=1e-5, rtol=1e-5)


def slow_match_points(height, width, boxes, labels, radius=1.5, most=6):
    """One image, in loops and pixels: the level of each object, its points near the centre, or the nearest one."""
    points = []  # (x, y, stride) level after level, row by row
    for stride in PYRAMID_STRIDES:
        rows, columns = -(-height // stride), -(-width // stride)
        points += [((c + 0.5) * stride, (r + 0.5) * stride, stride) for r in range(rows) for c in range(columns)]
    match, owner_area = [BACKGROUND] * len(points), [float("inf")] * len(points)
    pixels = (boxes * torch.tensor([width, height] * 2)).tolist()
    for m, ((x1, y1, x2, y2), label) in enumerate(zip(pixels, labels.tolist(), strict=True)):
        if label <= 0:
            continue
        longer = max(x2 - x1, y2 - y1)
        stride = next((s for s in PYRAMID_STRIDES if longer <= most * s), PYRAMID_STRIDES[-1])
        distance = {
            a: max(abs(x - (x1 + x2) / 2), abs(y - (y1 + y2) / 2)) / s
            for a, (x, y, s) in enumerate(points) if s == stride
        }  # fmt: skip
        inside = [a for a in distance if x1 < points[a][0] < x2 and y1 < points[a][1] < y2]
        positives = [a for a in inside if distance[a] <= radius] or [min(distance, key=distance.get)]
        for a in positives:
            if (x2 - x1) * (y2 - y1) < owner_area[a]:
                match[a], owner_area[a] = m, (x2 - x1) * (y2 - y1)
    for a, (x, y, _) in enumerate(points):
        for (x1, y1, x2, y2), label in zip(pixels, labels.tolist(), strict=True):
            if label == -1 and match[a] == BACKGROUND and x1 < x < x2 and y1 < y < y2:
                match[a] = IGNORED
    return match


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("height", "width"), [(128, 128), (64, 192), (448, 320)])
def test_match_points_equals_the_slow_version(seed, height, width):
    boxes, labels = scene(objects=8, seed=seed)
    match = match_points(point_grid(height, width), boxes, labels)
    for image in range(len(boxes)):
        assert match[image].tolist() == slow_match_points(height, width, boxes[image], labels[image])
    assert (match == IGNORED).any() and (match >= 0).any()


def torchvisions_matches(grid, box, size, radius):
    """What torchvision's FCOS assigns in one square image with one object: 0 for a positive, -1 elsewhere."""

    class Caught(Exception):
        pass

    def catch(targets, outputs, anchors, matches):
        raise Caught(matches[0])

    model = FCOS.__new__(FCOS)  # only what `compute_loss` asks for
    torch.nn.Module.__init__(model)
    unit = matching.MOST_CELLS / 2 / 8  # cells: its levels end at 8 of their units from a point to the farthest side
    model.center_sampling_radius, model.head = radius / unit, SimpleNamespace(compute_loss=catch)
    half = grid.steps * size * unit / 2
    anchors = torch.cat([grid.centres * size - half, grid.centres * size + half], dim=1)
    with pytest.raises(Caught) as caught:
        model.compute_loss([{"boxes": box * size}], {}, [anchors], list(grid.counts))
    return caught.value.args[0]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("level", [1, 2])
def test_on_an_objects_level_the_points_are_those_of_torchvisions_fcos(seed, level):
    size, radius = 512, 0.7
    grid, side = point_grid(size, size), 4.5 * PYRAMID_STRIDES[level] / size  # no point is 3 cells from a side
    corner = torch.rand(1, 2, generator=torch.Generator().manual_seed(seed)) * (1 - side)
    box = torch.cat([corner, corner + side], dim=1)
    ours = match_points(grid, box[None], torch.tensor([[1]]), radius=radius)[0] == 0
    theirs = torchvisions_matches(grid, box, size, radius) == 0
    own = grid.levels == level
    assert ours[own].equal(theirs[own]) and ours.any() and not ours[~own].any()


@settings(max_examples=80, deadline=None)
@given(
    left=st.floats(0, 0.98), top=st.floats(0, 0.98), width=st.floats(0.002, 1), height=st.floats(0.002, 1),
    shape=st.sampled_from([(64, 64), (128, 320), (256, 192)]),
)  # fmt: skip
def test_every_object_alone_gets_a_point_of_one_level_and_its_nearest(left, top, width, height, shape):
    grid = point_grid(*shape)
    box = torch.tensor([[[left, top, min(1, left + width), min(1, top + height)]]])
    positive = match_points(grid, box, torch.tensor([[5]]))[0] == 0
    assert 1 <= positive.sum() <= 9 + 7  # 3 × 3, or 4 × 4 where the centre lies between the cells
    assert len(grid.levels[positive].unique()) == 1
    distance = ((grid.centres - (box[0, 0, :2] + box[0, 0, 2:]) / 2) / grid.steps).abs().amax(dim=1)
    own = grid.levels == grid.levels[positive][0]
    assert distance[positive].min() == pytest.approx(float(distance[own].min()), abs=1e-5)


def test_of_two_objects_at_one_place_the_smaller_gets_the_point_whatever_their_order():
    grid, outer, inner = point_grid(128, 128), [0.1, 0.1, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4]
    for boxes, small in (([outer, inner], 1), ([inner, outer], 0)):
        match = match_points(grid, torch.tensor([boxes]), torch.tensor([[1, 1]]))[0]
        middle = ((grid.centres - 0.3).abs() < grid.steps * 1.5).all(dim=1) & (grid.levels == 0)
        assert (match[middle] == small).all() and (match >= 0).any()


@pytest.mark.parametrize("width", [256, 320, 416])
def test_an_object_at_the_bound_of_a_level_belongs_to_the_finer_one_wherever_it_lies(width):
    left = torch.arange(width - 48)  # (M,) one object in each image
    boxes = torch.stack([left, left, left + 48, left + 48], dim=1)[:, None] / width  # (M, 1, 4): 6 cells of 8 px
    grid = point_grid(width, width)
    positive = match_points(grid, boxes, torch.ones(len(left), 1).long()) >= 0  # (M, A)
    assert positive.any(dim=1).all() and not positive[:, grid.levels > 0].any()


def test_ignored_and_padding_and_no_rows():
    grid = point_grid(128, 128)
    crowd = match_points(grid, WHOLE[None, None], torch.tensor([[-1]]))
    both = match_points(grid, torch.tensor([[[0.0, 0.0, 1, 1], [0.1, 0.1, 0.5, 0.5]]]), torch.tensor([[-1, 7]]))
    assert (crowd == IGNORED).all()
    assert (both == 1).any() and ((both == IGNORED) | (both == 1)).all()
    for rows in (0, 3):
        none = match_points(grid, torch.zeros(2, rows, 4), torch.zeros(2, rows, dtype=torch.int64))
        assert none.shape == (2, len(grid)) and none.dtype == torch.int64 and (none == BACKGROUND).all()
    boxes, labels = scene()
    more = (
        torch.cat([boxes, torch.zeros(len(boxes), 4, 4)], 1),
        torch.cat([labels, torch.zeros(len(labels), 4).long()], 1),
    )
    assert match_points(grid, boxes, labels).equal(match_points(grid, *more))


def test_the_loss_takes_the_matcher_that_fits_its_grid():
    assert DetectionLoss(point_grid(64, 64)).matcher is match_points
    assert DetectionLoss(pyramid_grid(64, 64)).matcher is match_atss
    assert DetectionLoss(pyramid_grid(64, 64), "article").matcher is match_iou
    assert DetectionLoss(point_grid(64, 64), matcher=match_iou).matcher is match_iou


def test_the_points_move_with_the_loss_and_are_not_saved():
    grid = point_grid(64, 64)
    loss = DetectionLoss(grid)
    assert loss.grid is grid and not loss.state_dict()
    loss.to("meta")
    assert {loss.grid.centres.device.type, loss.grid.steps.device.type} == {"meta"}
    assert grid.centres.device.type == "cpu" and loss.grid.counts == grid.counts


def test_the_preset_has_the_pyramids_network_and_no_anchor():
    points, pyramid = build("points", ("cat", "dog")), build("pyramid", ("cat", "dog"))
    shapes = [{name: t.shape for name, t in detector.state_dict().items()} for detector in (points, pyramid)]
    assert shapes[0] == shapes[1]
    assert isinstance(points.grid(64, 128), PointGrid)
    assert points.settings == pyramid.settings._replace(preset="points")


@torch.no_grad()
def test_a_saved_detector_of_points_is_one_again(tmp_path):
    detector = build("points", ("cat", "dog")).eval()
    save_detector(tmp_path / "points.safetensors", detector)
    again = load_detector(tmp_path / "points.safetensors")
    assert again.settings == detector.settings and isinstance(again.grid(64, 64), PointGrid)


def test_random_objects_train_every_level():
    grid = point_grid(256, 256)
    boxes = random_boxes(16, 6, smallest=0.03, largest=0.95)
    match = match_points(grid, boxes, torch.ones(16, 6, dtype=torch.int64))
    assert all((match[:, grid.levels == level] >= 0).any() for level in range(4))


def test_a_detector_of_points_is_trained_evaluated_and_exported_by_the_commands(sample, tmp_path):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")

    def succeed(*words):
        assert main([*map(str, words)]) == 0

    options = "--size 64 --epochs 1 --batch-size 4 --workers 0 --device cpu --no-pretrained".split()
    best, exported = tmp_path / "run" / "best.safetensors", tmp_path / "points.onnx"
    succeed("train", "--data", sample, "--out", tmp_path / "run", "--preset", "points", *options)
    assert isinstance(load_detector(best).grid(64, 64), PointGrid)
    succeed("export", "--weights", best, "--out", exported)
    scores = []
    for weights in (best, exported):
        file = tmp_path / f"{weights.suffix}.json"
        succeed("evaluate", "--data", sample, "--weights", weights, "--json", file)
        scores.append(json.loads(file.read_text())["all"])
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)
