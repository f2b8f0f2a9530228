"""Protects what comes in: every kind of image file arrives upright, in RGB, 8 bits; boxes find their way to the
network's input and back; and what is no image is refused in one sentence."""

import os
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, UnidentifiedImageError, features

from odutils.anchors import PYRAMID_STRIDES
from odutils.errors import InputError, UnreadableError, plain_text
from odutils.images import (
    GREY,
    MULTIPLE,
    fit,
    input_shape,
    list_images,
    look_into,
    read_image,
    resize,
    to_rgb,
    upright_size,
)


def three_greys():
    return np.uint8([[0, 100, 255]])


def test_rgb_arrives_as_it_is(tmp_path, draw_image):
    image = draw_image()
    Image.fromarray(image).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8 and np.array_equal(read, image)


def test_grey(tmp_path):
    Image.fromarray(three_greys()).save(tmp_path / "grey.png")
    assert read_image(tmp_path / "grey.png").tolist() == [[[0] * 3, [100] * 3, [255] * 3]]


def test_16_bit_grey_is_scaled_not_cut_off(tmp_path):
    values = np.uint16([[0, 257 * 100, 65535]])
    cv2.imwrite(str(tmp_path / "grey.png"), values)
    assert read_image(tmp_path / "grey.png").tolist() == [[[0] * 3, [100] * 3, [255] * 3]]


def test_1_bit(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_image(tmp_path / "bits.png").tolist() == [[[255] * 3, [0] * 3]]


def test_palette_with_transparency_lies_on_white(tmp_path):
    image = Image.fromarray(np.uint8([[0, 1]]), "L").convert("P")
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.info["transparency"] = 1
    image.save(tmp_path / "palette.png", transparency=1)
    assert read_image(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_rgba_is_blended_with_white(tmp_path):
    Image.fromarray(np.uint8([[[200, 0, 100, 255], [200, 0, 100, 0], [200, 0, 100, 51]]])).save(tmp_path / "a.png")
    opaque, clear, fifth = read_image(tmp_path / "a.png")[0].tolist()
    assert (opaque, clear) == ([200, 0, 100], [255, 255, 255])
    assert np.allclose(fifth, [0.2 * v + 0.8 * 255 for v in (200, 0, 100)], atol=1)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "print.jpg").astype(int) - [255, 0, 0]).max() < 12


# What a viewer must do to the stored pixels for each orientation (EXIF 2.3, tag 0x0112), in NumPy's words.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.swapaxes(0, 1),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: stored[::-1, ::-1].swapaxes(0, 1),
    8: lambda stored: np.rot90(stored),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_turned_images_arrive_upright(tmp_path, draw_image, orientation, suffix):
    exif, path = Image.Exif(), tmp_path / f"turned.{suffix}"
    exif[0x0112] = orientation
    Image.fromarray(draw_image(24, 40)).save(path, exif=exif, quality=95, subsampling=0)
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)[..., ::-1]
    expected, read = UPRIGHT[orientation](stored), read_image(path)
    assert read.shape == expected.shape and np.abs(read.astype(int) - expected).max() <= 3  # two JPEG decoders
    assert upright_size(path) == expected.shape[1::-1]


def test_one_pixel(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    image = read_image(tmp_path / "dot.png")
    assert image.tolist() == [[[1, 2, 3]]]
    fitted, placement = fit(image, 64)
    assert fitted.shape == (64, 64, 3) and (fitted == [1, 2, 3]).all()
    assert placement.to_image(np.float32([[0, 0, 1, 1]])).tolist() == [[0, 0, 1, 1]]


def test_to_rgb_leaves_its_argument_alone(draw_image):
    image = Image.fromarray(draw_image()).convert("RGBA")
    before = image.copy()
    to_rgb(image)
    assert image == before


def write_truncated(path):
    Image.effect_noise((90, 60), 80).save(path)
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    "make, words",
    [
        (write_truncated, "truncated"),
        (lambda path: path.write_bytes(b""), "empty"),
        (lambda path: path.write_text("not an image"), "cannot be read"),
        (lambda path: path.mkdir(), "cannot be read"),
        (lambda path: None, "no such file"),
    ],
    ids=["truncated", "empty", "text", "folder", "missing"],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path, make, words):
    path = tmp_path / "a.jpg"
    make(path)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(path) in str(caught.value) and words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_no_permission(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (2, 2)).save(path)
    path.chmod(0)
    with pytest.raises(InputError, match="Permission denied"):
        read_image(path)


def test_images_of_a_folder(tmp_path):
    for name in ("b.PNG", "a.jpg", "notes.txt", "c.jpeg.part"):
        (tmp_path / name).touch()
    assert [path.name for path in list_images(tmp_path)] == ["a.jpg", "b.PNG"]


def test_folders_that_cannot_be_listed(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no images"):
        list_images(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        list_images(tmp_path / "nothing")


HEIC = b"\0\0\0\x18ftypheic" + bytes(99)


@pytest.mark.parametrize(
    "content, kind", [(HEIC, "HEIC: pip install pillow-heif"), (b"\xff\x0a" + bytes(99), "JPEG XL: pip install")]
)
def test_a_kind_that_needs_a_package_is_named_with_the_package(tmp_path, monkeypatch, content, kind):
    """Whatever its suffix: phones send HEIC as .jpg, too."""
    for module in ("pillow_heif", "pillow_jxl"):
        monkeypatch.setitem(sys.modules, module, None)
    for name in ("a.heic", "a.jpg"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableError, match=f"{name}: cannot be read as an image .{kind}"):
            read_image(tmp_path / name)
        with pytest.raises(UnidentifiedImageError, match=kind):
            upright_size(tmp_path / name)


def test_the_package_is_used_where_it_is_installed(tmp_path, monkeypatch):
    def register():
        monkeypatch.setattr(Image, "open", lambda file: Image.new("RGB", (5, 4), (1, 2, 3)))

    monkeypatch.setitem(sys.modules, "pillow_heif", SimpleNamespace(register_heif_opener=register))
    (tmp_path / "a.heic").write_bytes(HEIC)
    assert read_image(tmp_path / "a.heic").shape == (4, 5, 3)


@pytest.mark.parametrize("suffix", ["avif", "jp2"])
def test_what_pillow_reads_itself_is_in_the_list(tmp_path, draw_image, suffix):
    if not features.check({"avif": "avif", "jp2": "jpg_2000"}[suffix]):
        pytest.skip(f"this Pillow reads no {suffix}")
    Image.fromarray(draw_image()).save(tmp_path / f"a.{suffix}")
    (path,) = list_images(tmp_path)
    assert np.abs(read_image(path).astype(int) - draw_image()).mean() < 5


@pytest.mark.parametrize("content", [b"words", HEIC, b"\x89PNG\r\n\x1a\n" + bytes(20), b"GIF89a", b"BM" + bytes(9)])
def test_no_message_shows_an_address(tmp_path, content):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for look in (read_image, upright_size):
        with pytest.raises((UnreadableError, OSError, SyntaxError)) as caught:
            look(path)
        assert "0x" not in str(caught.value)
    assert plain_text(ValueError("no <_io.BytesIO object at 0x7f01>,\n sorry")) == "no, sorry"
    assert plain_text(MemoryError()) == "MemoryError"


@pytest.fixture
def mixed(tmp_path):
    """A folder with images, what is none, sub-folders, and links in circles."""
    for name in ("b.png", "._b.png", "notes.txt", "c.heic", "d.HEIC", "e.svg", "trip/a.jpg", "trip/deep/z.JPG"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    (tmp_path / "trip" / "home").symlink_to(tmp_path)
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    return tmp_path


def test_what_is_passed_over_is_counted(mixed, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    found = look_into(mixed)
    assert [path.name for path in found.images] == ["b.png", "loop.jpg"]  # which then cannot be read
    expected = "1 sub-folder (name them, or ask for `recursive`), 2 .heic (pip install pillow-heif), 1 .svg (save as"
    assert found.passed_over.startswith(expected)
    with pytest.raises(UnreadableError, match="loop.jpg: cannot be read as an image .Too many levels"):
        read_image(mixed / "loop.jpg")


def test_sub_folders_are_taken_where_that_is_wished(mixed):
    found = list_images(mixed, recursive=True)
    assert [path.relative_to(mixed).as_posix() for path in found] == [
        "b.png", "loop.jpg", "trip/a.jpg", "trip/deep/z.JPG"
    ]  # fmt: skip
    (mixed / "b.png").unlink()
    (mixed / "loop.jpg").unlink()
    with pytest.raises(InputError, match="no images in this folder .*passed over: 1 sub-folder "):
        list_images(mixed)


SIDE = st.integers(1, 300)


@settings(deadline=None)
@given(SIDE, SIDE, st.sampled_from([64, 96, 128]), st.booleans(), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_boxes_go_to_the_input_and_back(height, width, size, squash, corners):
    fitted, placement = fit(np.zeros((height, width, 3), np.uint8), size, squash)
    assert fitted.shape == (size, size, 3)
    box = np.float32([corners]) * np.float32([width, height] * 2)  # (1, 4) in pixels
    there = placement.to_input(box)
    assert there.min() >= 0 and there.max() <= 1 + 1e-6
    assert np.allclose(placement.to_image(there), box, atol=1e-3)


@settings(deadline=None)
@given(SIDE, SIDE, st.sampled_from([64, 100, 320]), st.booleans())
def test_the_input_is_the_smallest_that_holds_the_image(height, width, size, squash):
    shape = input_shape(height, width, size, squash)
    if squash:
        assert shape == (size, size)
        return
    fitted, placement = fit(np.zeros((height, width, 3), np.uint8), size, shape=shape)
    assert fitted.shape[:2] == shape
    for side, whole in zip(shape, (placement.scale_y * height, placement.scale_x * width), strict=True):
        assert side % 64 == 0 and side - 64 < whole <= side + 1e-6


def test_the_image_lies_in_the_corner_and_the_rest_is_grey():
    fitted, placement = fit(np.full((30, 60, 3), 200, np.uint8), 64)
    assert (fitted[:32] == 200).all() and (fitted[32:] == GREY).all()
    assert placement.to_input(np.float32([[0, 0, 60, 30]])).tolist() == [[0, 0, 1, 0.5]]


@pytest.mark.parametrize("sides", [(40, 70), (7, 300), (150, 101), (75, 101), (1, 1)])
@pytest.mark.parametrize("cut", [slice(None), slice(3, -5)])
def test_resize_is_pils_bilinear(draw_image, sides, cut):
    """PIL's, too, widens its filter when an image shrinks."""
    image = draw_image(75, 101)[cut, cut]
    expected = Image.fromarray(image).resize(sides[::-1], Image.Resampling.BILINEAR)
    resized = resize(image, *sides)
    assert resized.flags.c_contiguous and resized.dtype == np.uint8
    assert np.abs(resized.astype(int) - np.asarray(expected).astype(int)).max() <= 1


@pytest.mark.parametrize("sides", [(75, 101), (90, 101), (200, 303), (76, 90)])
def test_a_quick_resize_is_within_one_level(draw_image, sides):
    image = draw_image(75, 101)
    quick = resize(image, *sides, quick=True)
    assert quick.shape == (*sides, 3) and np.abs(quick.astype(int) - resize(image, *sides).astype(int)).max() <= 1


def test_resize_takes_what_pil_gives_without_a_warning(draw_image, recwarn):
    resize(np.asarray(Image.fromarray(draw_image())), 20, 30)  # such an array cannot be written to
    resize(draw_image()[:, ::-1], 20, 30)
    assert not recwarn


@pytest.mark.parametrize("side", [128, 256, 1000])
def test_shrinking_averages(side):
    """A chessboard of single pixels becomes grey, not black or white."""
    board = np.indices((side, side)).sum(axis=0) % 2 * np.uint8(255)
    fitted, _ = fit(np.repeat(board[..., None], 3, axis=2).astype(np.uint8), 64)
    off = np.abs(fitted.astype(int) - 127)
    corners = np.ix_([0, -1], [0, -1])  # have half of the neighbours, in both directions
    assert off[corners].max() <= 3
    off[corners] = 0
    assert off.max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_plain_jpegs_read_as_pil_reads_them(tmp_path, draw_image, mode):
    Image.fromarray(draw_image(75, 101)).convert(mode).save(tmp_path / "plain.jpg", quality=85)
    with Image.open(tmp_path / "plain.jpg") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_image(tmp_path / "plain.jpg") - expected).max() <= 2  # their versions of libjpeg may differ


@pytest.mark.parametrize("share", [0.3, 0.7, 0.95])
def test_a_jpeg_cut_off_is_refused_wherever_the_cut_is(tmp_path, draw_image, share):
    path = tmp_path / "cut.jpg"
    Image.fromarray(draw_image(120, 160)).save(path, quality=95)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UnreadableError):
        read_image(path)


def test_inputs_have_whole_cells_at_every_level():
    assert all(MULTIPLE % stride == 0 for stride in PYRAMID_STRIDES)
