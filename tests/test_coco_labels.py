"""Protects what all readers of labels share: images found by name and measured upright, boxes cut off at the edges, and
faults of which the first is told in full and the others are counted."""

import pytest
from PIL import Image

from odutils.coco.labels import ImageFolder, inside, label_files, read_all
from odutils.errors import InputError, UnreadableError
from odutils.images import ORIENTATION, read_image


@pytest.fixture
def folder(tmp_path, draw_image):
    for name in ("a.jpg", "deep/b.png", "deep/b.jpg"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_image(40, 60)).save(tmp_path / "images" / name)
    return tmp_path / "images"


def test_images_are_found_by_their_names_below_the_folder(folder):
    images = ImageFolder(folder)
    assert images.paths == {name: folder / name for name in ("a.jpg", "deep/b.jpg", "deep/b.png")}
    assert images.with_stem("a", "here") == "a.jpg"
    with pytest.raises(InputError, match=r"here: no image b\.\* in .*images"):
        images.with_stem("b", "here")
    with pytest.raises(InputError, match="here: there are deep/b.jpg and deep/b.png"):
        images.with_stem("deep/b", "here")


def test_sizes_are_those_of_upright_images(folder, draw_image):
    turned = Image.fromarray(draw_image(40, 60))
    exif = turned.getexif()
    exif[ORIENTATION] = 6
    turned.save(folder / "turned.jpg", exif=exif)
    sizes = ImageFolder(folder).sizes
    assert sizes["a.jpg"] == (60, 40) and sizes["turned.jpg"] == (40, 60)
    assert read_image(folder / "turned.jpg").shape == (60, 40, 3)


def test_a_broken_image_is_named(folder):
    (folder / "a.jpg").write_bytes((folder / "a.jpg").read_bytes()[:200])
    with pytest.raises(UnreadableError, match="a.jpg: cannot be read as an image"):
        ImageFolder(folder)


def test_boxes_are_cut_off_at_the_edges():
    assert inside((-3, 5, 10, 99), (60, 40), "here") == (0, 5, 10, 40)
    for box, words in {
        (1, 1, 1, 5): "no area",
        (5, 5, 2, 9): "no area",
        (60, 0, 70, 9): r"outside the image of 60 × 40",
        (-5, -5, -1, -1): r"outside the image of 60 × 40",
    }.items():
        with pytest.raises(InputError, match=f"^here: the box .*{words}"):
            inside(box, (60, 40), "here")


def test_the_first_fault_is_told_and_the_others_are_counted():
    def read(number):
        done.append(number)
        if number % 2:
            raise InputError(f"{number} is odd")

    done = []
    read_all([2, 4], read)
    with pytest.raises(InputError, match="^3 is odd$"):
        read_all([2, 3, 4], read)
    with pytest.raises(InputError, match=r"^1 is odd \(and 2 more faults\)$"):
        read_all([1, 2, 3, 5], read)
    assert done == [2, 4, 2, 3, 4, 1, 2, 3, 5]


def test_label_files(tmp_path):
    with pytest.raises(InputError, match="none: no such folder"):
        label_files(tmp_path / "none", ".txt")
    (tmp_path / "._a.txt").write_text("macOS")
    with pytest.raises(InputError, match="no .txt files"):
        label_files(tmp_path, ".txt")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.txt").touch()
    assert label_files(tmp_path, ".txt") == [tmp_path / "deep" / "a.txt"]
