"""Protects what a reader sees: boxes in their class's colour, tags that never leave the image, inputs left alone."""

import subprocess
import sys
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from odutils.classes import CLASSES, colour_of, readable_on
from odutils.drawing import draw_boxes, draw_detections, show, tile_images, write_image
from odutils.errors import InputError
from odutils.images import read_image


class Detections(NamedTuple):
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


def grey(height=240, width=320, value=90):
    return np.full((height, width, 3), value, np.uint8)


def pixels_of(image, colour):
    """(y, x) of the pixels that have exactly this colour."""
    return np.argwhere((image == np.array(colour)).all(axis=2))


def test_edges_have_the_colour_of_the_class_and_the_inside_stays():
    image = grey()
    drawn = draw_boxes(image, [[60, 80, 200, 180]], labels=[3])
    for x, y in ((60, 130), (200, 130), (150, 180), (190, 80)):
        assert tuple(drawn[y, x]) == colour_of(3)
    assert (drawn[100:160, 80:180] == 90).all()
    assert (image == 90).all()
    assert not np.shares_memory(image, drawn)


def tag_of(size, box, text="zebra 88%"):
    """Rows and columns of the tag: where a drawing with a text differs from one without; and its letter pixels."""
    with_text, without = (draw_boxes(grey(*size), [box], texts=[t], colours=[(0, 0, 200)]) for t in (text, ""))
    tag = (with_text != without).any(axis=2)
    ys, xs = np.nonzero(tag)
    return ys.min(), ys.max(), xs.min(), xs.max(), int((tag & (with_text[..., 0] > 150)).sum())


@pytest.mark.parametrize("size", [(120, 160), (240, 320), (1080, 1920)])
@pytest.mark.parametrize(
    "x, y", [(0, 0), (0.9, 0), (0, 0.9), (0.9, 0.9), (-0.05, 0.4), (0.4, -0.05), (0.95, 0.5), (0.4, 0.95)]
)
def test_a_tag_is_whole_and_inside_wherever_the_box_is(size, x, y):
    """It covers as many rows and columns, and has as many letter pixels, as the tag of a box with room around it."""
    height, width = size
    top, bottom, left, right, letters = tag_of(size, [x * width, y * height, (x + 0.1) * width, (y + 0.1) * height])
    free = tag_of(size, [width * 0.3, height * 0.5, width * 0.4, height * 0.6])
    assert 0 <= top and bottom < height and 0 <= left and right < width
    line = 2 + height // 100  # the tag may hide some of the box's line, which then does not count as a difference
    assert abs((bottom - top) - (free[1] - free[0])) <= line and abs((right - left) - (free[3] - free[2])) <= line
    assert letters >= 0.85 * free[4]


def test_the_tag_sits_on_the_box_and_moves_inside_at_the_borders():
    size = (480, 640)
    top, bottom, left, right, _ = tag_of(size, [200, 200, 400, 300])
    tag_height, tag_width = bottom - top + 1, right - left + 1
    assert bottom < 202 and top > 160 and abs(left - 200) <= 3
    top, bottom, left, right, _ = tag_of(size, [200, 0, 400, 300])  # no room above
    assert top >= 0 and abs(bottom - tag_height) <= 6
    top, bottom, left, right, _ = tag_of(size, [600, 200, 640, 300])  # no room at the right
    assert right <= 639 and abs((right - left + 1) - tag_width) <= 4
    top, bottom, left, right, _ = tag_of(size, [-50, 200, 40, 300])  # begins outside
    assert left == 0 and abs((right - left + 1) - tag_width) <= 6


def test_a_tag_wider_than_the_image_shrinks():
    drawn = draw_boxes(grey(60, 50), [[5, 30, 40, 55]], labels=[10], scores=[0.5])
    tag = drawn[:30]
    assert (tag != 90).any()
    assert (tag[:, -1] != 255).all()  # no letter is cut by the border


def test_the_most_confident_box_is_on_top():
    boxes = [[50, 80, 200, 180]] * 3
    drawn = draw_boxes(grey(), boxes, labels=[1, 2, 3], scores=[0.4, 0.9, 0.6])
    assert tuple(drawn[180, 120]) == colour_of(2)
    assert tuple(drawn[130, 50]) == tuple(drawn[130, 200]) == colour_of(2)


def test_line_and_letters_grow_with_the_image():
    def widths(scale):
        drawn = draw_boxes(grey(240 * scale, 320 * scale), [np.array([60, 80, 200, 180]) * scale], labels=[3])
        line = len(pixels_of(drawn[130 * scale : 130 * scale + 1, : 120 * scale], colour_of(3)))
        tag = (drawn[: 78 * scale] != 90).any(axis=2).any(axis=1).sum()
        return line, tag

    (small_line, small_tag), (large_line, large_tag) = widths(2), widths(6)
    assert 2.5 <= large_line / small_line <= 3.7 and 2.5 <= large_tag / small_tag <= 3.5
    assert (
        len(pixels_of(draw_boxes(grey(), [[9, 60, 99, 90]], colours=[(1, 2, 3)], thickness=5)[70:71, :50], (1, 2, 3)))
        == 5
    )


@pytest.mark.parametrize(
    "colour", [(0, 0, 0), (255, 255, 255), (255, 255, 0), (200, 0, 0), *map(colour_of, range(1, 81))]
)
def test_text_is_readable_on_every_colour(colour):
    def luminance(rgb):  # WCAG 2.1
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (channel / 255 for channel in rgb)
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(colour), luminance(readable_on(colour))))
    assert (light + 0.05) / (dark + 0.05) > 2.9


def test_awkward_arrays_are_drawn_on_a_copy():
    wide = grey(240, 640)
    strided = wide[:, ::2][::-1]
    read_only = grey()
    read_only.flags.writeable = False
    expected = draw_boxes(grey(), [[60, 80, 200, 180]], labels=[1])
    for image in (strided, read_only, np.asfortranarray(grey())):
        before = image.copy()
        assert (draw_boxes(image, [[60, 80, 200, 180]], labels=[1]) == expected).all()
        assert (image == before).all()


def test_nothing_found_and_nothing_inside_leave_the_image_as_it_is():
    empty = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert (draw_detections(grey(), empty) == 90).all()
    assert (draw_boxes(grey(), [[-50, -50, -10, -10], [400, 10, 500, 20]], labels=[1, 2]) == 90).all()
    assert draw_boxes(grey(), [], labels=[]).shape == (240, 320, 3)


def test_a_box_larger_than_the_image_is_seen_at_its_border():
    drawn = draw_boxes(grey(), [[-100, -100, 1e9, 1e9]], labels=[1])
    assert tuple(drawn[120, 0]) == tuple(drawn[239, 160]) == tuple(drawn[120, 319]) == colour_of(1)


def test_detections_are_drawn_with_the_names_of_their_classes():
    found = Detections(np.float32([[60, 80, 200, 180]]), np.array([2]), np.float32([0.87]))
    assert (
        draw_detections(grey(), found) == draw_boxes(grey(), found.boxes, texts=["bicycle 87%"], colours=[colour_of(2)])
    ).all()
    own = draw_detections(grey(), found, ("cup", "owl"))
    assert (own == draw_boxes(grey(), found.boxes, texts=["owl 87%"], colours=[colour_of(2)])).all()
    assert len(CLASSES) == 80


@pytest.mark.parametrize(
    "image",
    [np.zeros((9, 9), np.uint8), np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9, 3)), np.zeros((0, 9, 3), np.uint8)],
)
def test_what_is_no_image_is_refused(image):
    with pytest.raises(InputError, match="uint8 array"):
        draw_boxes(image, [])


def test_boxes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="2 boxes .* 1 labels"):
        draw_boxes(grey(), [[1, 2, 3, 4]] * 2, labels=[1])
    with pytest.raises(InputError, match="box 1 "):
        draw_boxes(grey(), [[1, 2, 3, 4], [1, np.nan, 3, 4]])


def test_a_grid_has_even_gutters_and_does_not_distort():
    sizes = [(60, 80), (80, 60), (30, 100), (100, 100), (200, 20)]
    images = [np.full((height, width, 3), 10 * index + 10, np.uint8) for index, (height, width) in enumerate(sizes)]
    tiled = tile_images(images, columns=3, width=305, gutter=7)
    assert tiled.shape[1] == 305 and tiled.dtype == np.uint8
    for index, (height, width) in enumerate(sizes):
        found = pixels_of(tiled, [10 * index + 10] * 3)
        tall, wide = found.max(axis=0) - found.min(axis=0) + 1
        assert abs(tall / wide - height / width) < 0.06 * height / width + 0.02
    first, second, third = (pixels_of(tiled, [value] * 3)[:, 1] for value in (10, 20, 30))
    assert (
        first.min() == 0 and second.min() - first.max() == 8 and third.min() - second.max() == 8 and third.max() == 304
    )
    assert tile_images(images[:1], columns=3, width=100).shape == (75, 100, 3)
    with pytest.raises(InputError):
        tile_images([])


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG"])
def test_a_written_image_is_read_again(tmp_path, suffix):
    ramp = np.zeros((40, 50, 3), np.uint8)
    ramp[..., 0], ramp[..., 2] = np.linspace(0, 255, 50), 40
    path = tmp_path / "new" / f"ramp{suffix}"
    write_image(path, ramp[:, ::-1])
    error = np.abs(read_image(path).astype(int) - ramp[:, ::-1]).max()
    assert error == 0 if suffix == ".png" else error < 20
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_an_image_of_another_kind_is_not_written(tmp_path):
    with pytest.raises(InputError, match="gif"):
        write_image(tmp_path / "a.gif", grey())
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_image(tmp_path / "folder.png", grey())
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_notebook_gets_a_small_jpeg(monkeypatch):
    pytest.importorskip("IPython")
    plt = pytest.importorskip("matplotlib.pyplot")
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8)
    show([cv2.GaussianBlur(noise, (0, 0), 5)] * 3, titles=["one", "two", "three"], columns=2)
    show(grey())
    assert all(image.data[:3] == b"\xff\xd8\xff" for image in shown)
    assert len(shown) == 2 and len(shown[0].data) < 200_000
    assert not plt.get_fignums()


def test_titles_stay_over_their_own_image(monkeypatch):
    pytest.importorskip("IPython")
    plt = pytest.importorskip("matplotlib.pyplot")
    figures = []
    monkeypatch.setattr("IPython.display.display", lambda image: None)
    monkeypatch.setattr(plt, "get_backend", lambda: "module://matplotlib_inline.backend_inline")
    monkeypatch.setattr(plt, "close", figures.append)
    title = "4.5 s  bicycle, car, motorcycle, person, traffic light"
    show([grey()] * 8, titles=[title] * 6 + ["short", "two\nlines"], columns=4, width=9)
    monkeypatch.undo()
    titles = [axis.title for axis in figures[0].axes]
    boxes = [one.get_window_extent() for one in titles] + [a.get_window_extent() for a in figures[0].axes]
    for index, box in enumerate(boxes):
        assert not any(box.shrunk(0.98, 0.98).overlaps(other.shrunk(0.98, 0.98)) for other in boxes[index + 1 :])
    assert titles[0].get_text().replace("\n", " ") == title and titles[7].get_text() == "two\nlines"
    plt.close(figures[0])


def test_importing_loads_no_matplotlib():
    heavy = ("matplotlib", "av", "torch", "fastprogress", "tqdm")
    code = f"import sys, odutils.drawing, odutils.video.annotate; print([m for m in {heavy} if m in sys.modules])"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
    )
