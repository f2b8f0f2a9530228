"""Protects the geometry: where anchors stand, that heads predict in their order, and that boxes survive encoding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from odutils.anchors import (
    PYRAMID_ANCHOR,
    PYRAMID_STRIDES,
    AnchorGrid,
    article_grid,
    pyramid_grid,
)
from odutils.model import ArticleHead, PyramidHead
from odutils.points import decode_sides, encode_sides

RECTANGLES = [(256, 256), (192, 320), (320, 64), (64, 448)]


def one_anchor(box, step=(0.1, 0.1), coding="tanh"):
    return AnchorGrid(torch.tensor([box]), torch.tensor([step]), (1,), coding)


def articles_cells():
    """(cells a side, row, column, shape) of the article's 3,150 anchors, as loops."""
    return [(n, r, c, s) for n in (7, 4, 2, 1) for r in range(n) for c in range(n) for s in range(45)]


# ---- where anchors stand


def articles_shape(number):
    """Left, top, width, height of one of the 45 shapes, in anchor sizes: 3 × 3 whole, 6 × 3 wide, 3 × 6 tall."""
    if number < 9:
        row, column = divmod(number, 3)
        return (column - 1) / 3, (row - 1) / 3, 1, 1
    if number < 27:
        row, column = divmod(number - 9, 3)
        return (column - 1) / 3, (row - 1) / 6, 1, 0.5
    row, column = divmod(number - 27, 6)
    return (column - 1) / 6, (row - 1) / 3, 0.5, 1


@pytest.mark.parametrize("to_the_edge", [True, False])
def test_article_grid_is_the_one_of_the_loops(to_the_edge):
    grid = article_grid(to_the_edge=to_the_edge)
    expected = []
    for cells, row, column, shape in articles_cells():
        size = {7: 1 / 8, 4: 1 / 4, 2: 1 / 2, 1: 1}[cells]
        pitch = 1 / cells if to_the_edge else size
        left, top, width, height = articles_shape(shape)
        x, y = column * pitch + left * size, row * pitch + top * size
        expected.append([min(max(v, 0), 1) for v in (x, y, x + width * size, y + height * size)])
    assert grid.counts == (2205, 720, 180, 45) and len(grid) == 3150
    torch.testing.assert_close(grid.boxes, torch.tensor(expected), atol=1e-6, rtol=0)
    assert (grid.boxes[:, 2:] > grid.boxes[:, :2]).all()


def test_article_grid_reaches_all_of_the_image_unless_it_keeps_the_articles_gap():
    right_edge = {edge: article_grid(to_the_edge=edge).boxes[:2205, 2].max().item() for edge in (True, False)}
    assert right_edge[True] == 1
    assert right_edge[False] < 0.92


@pytest.mark.parametrize(("height", "width"), RECTANGLES)
def test_pyramid_grid_has_a_square_anchor_on_the_middle_of_every_cell(height, width):
    grid = pyramid_grid(height, width)
    expected, counts = [], []
    for stride in PYRAMID_STRIDES:
        counts.append((height // stride) * (width // stride))
        for row in range(height // stride):
            for column in range(width // stride):
                x, y, half = (column + 0.5) * stride, (row + 0.5) * stride, PYRAMID_ANCHOR * stride / 2
                expected.append([(x - half) / width, (y - half) / height, (x + half) / width, (y + half) / height])
    assert grid.counts == tuple(counts)
    torch.testing.assert_close(grid.boxes, torch.tensor(expected))
    pixels = torch.tensor([width, height])
    assert (grid.steps * pixels).unique().tolist() == list(PYRAMID_STRIDES)
    torch.testing.assert_close(*((grid.boxes[:, 2:] - grid.boxes[:, :2]) * pixels).unbind(1))


def test_a_side_that_is_no_multiple_of_the_stride_gets_a_cell_for_its_rest():
    assert pyramid_grid(100, 64).counts == (13 * 8, 7 * 4, 4 * 2, 2 * 1)


# ---- heads predict in the order of the anchors


def position_map(rows, columns, channels, level):
    """(1, channels, rows, columns): column, row and level number in the first three channels."""
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    features = torch.zeros(1, channels, rows, columns)
    features[0, :3] = torch.stack([x, y, torch.full_like(x, level)]).float()
    return features


def copy_first_three(conv, values):
    """Make a convolution's outputs (`values` per shape) copy channels 0, 1, 2 of the cell; the fourth is the shape."""
    middle = conv.kernel_size[0] // 2
    with torch.no_grad():
        conv.weight.zero_()
        conv.bias.zero_()
        for shape in range(conv.out_channels // values):
            for channel in range(3):
                conv.weight[shape * values + channel, channel, middle, middle] = 1
            conv.bias[shape * values + 3] = shape


@pytest.mark.parametrize(("height", "width"), RECTANGLES)
def test_pyramid_head_predicts_in_the_order_of_its_anchors(height, width):
    head = PyramidHead((40, 112, 1280), classes=4)
    head.class_tower, head.box_tower = nn.ModuleList(), nn.ModuleList()
    copy_first_three(head.class_output, 4)
    copy_first_three(head.box_output, 4)
    maps = [position_map(height // s, width // s, 96, level) for level, s in enumerate(PYRAMID_STRIDES)]
    head.fuse = lambda features: features
    logits, codes = head(maps)
    grid = pyramid_grid(height, width)
    centre = (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2
    levels = torch.repeat_interleave(torch.arange(4.0), torch.tensor(grid.counts))
    for outputs in (logits[0], codes[0]):
        torch.testing.assert_close((outputs[:, :2] + 0.5) * grid.steps, centre)
        torch.testing.assert_close(outputs[:, 2], levels)


@pytest.mark.parametrize(("height", "width"), RECTANGLES)
def test_pyramid_levels_have_as_many_cells_as_the_grid(height, width):
    head = PyramidHead((8, 8, 8), classes=2).eval()
    features = [torch.zeros(1, 8, height // s, width // s) for s in (8, 16, 32)]
    with torch.no_grad():
        assert tuple(m.shape[2] * m.shape[3] for m in head.fuse(features)) == pyramid_grid(height, width).counts


def test_article_head_predicts_in_the_order_of_its_anchors():
    head = ArticleHead(classes=4)

    class Position(nn.Module):
        def __init__(self, level, cells):
            super().__init__()
            self.map = position_map(cells, cells, 256, level)

        def forward(self, features):
            return self.map

    head.stages = nn.ModuleList(Position(level, cells) for level, cells in enumerate((7, 4, 2, 1)))
    for output in (*head.class_outputs, *head.box_outputs):
        copy_first_three(output, 4)
    with torch.no_grad():
        logits, codes = head(torch.zeros(1, 512, 7, 7))
    expected = torch.tensor([[c, r, (7, 4, 2, 1).index(n), s] for n, r, c, s in articles_cells()]).float()
    torch.testing.assert_close(logits[0], expected)
    torch.testing.assert_close(codes[0], expected)


# ---- coding

share = st.floats(-0.49, 0.49)
side = st.floats(0.002, 30.0)


@settings(max_examples=60, deadline=None)
@given(move=st.tuples(share, share), grow=st.tuples(share, share))
def test_tanh_coding_round_trip_of_what_it_can_reach(move, grow):
    grid = one_anchor([0.2, 0.3, 0.6, 0.5])
    centre, size = torch.tensor([0.4, 0.4]), torch.tensor([0.4, 0.2])
    new_centre, new_size = centre + torch.tensor(move) * size, size * (1 + torch.tensor(grow))
    box = torch.cat([new_centre - new_size / 2, new_centre + new_size / 2])[None]
    torch.testing.assert_close(grid.decode(grid.encode(box)), box, atol=1e-5, rtol=0)


@settings(max_examples=60, deadline=None)
@given(x1=side, y1=side, x2=side, y2=side)
def test_sides_coding_round_trip_of_every_box_around_the_centre(x1, y1, x2, y2):
    grid = one_anchor([0.2, 0.3, 0.6, 0.5], step=(0.05, 0.1), coding="sides")
    box = torch.tensor([[0.4 - 0.05 * x1, 0.4 - 0.1 * y1, 0.4 + 0.05 * x2, 0.4 + 0.1 * y2]])
    torch.testing.assert_close(grid.decode(grid.encode(box)), box, atol=1e-5, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(code=st.lists(st.floats(-2.5, 2.5), min_size=4, max_size=4), coding=st.sampled_from(["tanh", "sides"]))
def test_encode_undoes_decode(code, coding):
    grid = one_anchor([0.2, 0.3, 0.6, 0.5], coding=coding)
    code = torch.tensor([code], dtype=torch.float64)
    grid = AnchorGrid(grid.boxes.double(), grid.steps.double(), grid.counts, coding)
    torch.testing.assert_close(grid.encode(grid.decode(code)), code, atol=1e-4, rtol=1e-4)


def test_tanh_cannot_move_by_more_than_half_an_anchor_nor_shrink_below_half_of_it():
    grid = one_anchor([0.4, 0.4, 0.6, 0.6])
    wanted = torch.tensor(
        [[[0.49, 0.49, 0.51, 0.51]], [[0.0, 0.0, 1.0, 1.0]], [[0.8, 0.4, 1.0, 0.6]]]
    )  # small, large, far
    small, large, far = grid.decode(grid.encode(wanted))[:, 0]
    extreme = grid.decode(torch.tensor([[1e3, -1e3, 1e3, -1e3]]))[0]
    assert (small[2:] - small[:2]).tolist() == pytest.approx([0.1, 0.1], abs=1e-3)
    assert (large[2:] - large[:2]).tolist() == pytest.approx([0.3, 0.3], abs=1e-3)
    assert far.tolist() == pytest.approx([0.5, 0.4, 0.7, 0.6], abs=1e-3)
    assert extreme.tolist() == pytest.approx([0.6 - 0.15, 0.4 - 0.05, 0.6 + 0.15, 0.4 + 0.05], abs=1e-6)


def test_inverse_softplus_is_stable_for_short_and_long_distances():
    distance = torch.logspace(-3, 4, 200)  # in cells
    zeros = torch.zeros_like(distance)
    centres, steps = torch.zeros(200, 2), torch.ones(200, 2)
    code = encode_sides(torch.stack([-distance, -distance, distance, distance], 1), centres, steps)
    assert code.isfinite().all()
    torch.testing.assert_close(F.softplus(code[:, 0]), distance, rtol=1e-4, atol=0)
    assert (decode_sides(code, centres, steps)[:, :2] < zeros[:, None]).all()


def test_sides_always_decode_to_a_box_and_a_side_beyond_the_centre_becomes_a_sliver():
    grid = one_anchor([0.2, 0.2, 0.6, 0.6], coding="sides")
    box = grid.decode(torch.randn(100, 1, 4) * 10)
    assert (box[..., 2:] >= box[..., :2]).all()
    beside = torch.tensor([[0.5, 0.2, 0.6, 0.6]])  # all of it right of the centre, 0.4
    assert grid.decode(grid.encode(beside))[0].tolist() == pytest.approx([0.4 - 1e-4, 0.2, 0.6, 0.6], abs=1e-5)


def test_a_picked_grid_decodes_as_the_whole_does():
    grid, index = pyramid_grid(128, 192), torch.tensor([300, 7, 7, 42])
    codes = torch.randn(len(grid), 4)
    torch.testing.assert_close(grid.pick(index).decode(codes[index]), grid.decode(codes)[index])
    assert len(grid.pick(index)) == 4


def test_what_a_grid_remembers_follows_from_its_anchors():
    grid = pyramid_grid(128, 192)
    width, height = (grid.boxes[:, 2:] - grid.boxes[:, :2]).unbind(dim=1)
    torch.testing.assert_close(grid.areas, width * height)
    torch.testing.assert_close(grid.edges.T, grid.boxes)
    torch.testing.assert_close(grid.centres, (grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2)
    pixels = grid.scaled_centres.T * 8  # the finest stride
    torch.testing.assert_close(pixels, grid.centres * torch.tensor([192.0, 128.0]))
    codes = torch.randn(3, len(grid), 4)
    torch.testing.assert_close(grid.decode(codes), decode_sides(codes, grid.centres, grid.steps))


@pytest.mark.parametrize("make", [pyramid_grid, article_grid])
def test_a_grid_first_made_for_inference_serves_training_too(make):
    make.cache_clear()
    with torch.inference_mode():
        make(224, 224).decode(torch.zeros(1, len(make(224, 224)), 4))
    grid = make(224, 224)
    codes = torch.zeros(1, len(grid), 4, requires_grad=True)
    grid.decode(codes).sum().backward()
    assert torch.isfinite(codes.grad).all()
