"""Protects the reading of PASCAL VOC's labels: corners that count from 1, difficult objects, images by name, and every
fault by file and line."""

import pytest
from PIL import Image

from odutils.coco.labels import ImageFolder
from odutils.coco.voc import read_voc
from odutils.errors import InputError

OBJECT = """
  <object>
    <name>{name}</name>
    <difficult>{difficult}</difficult>
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""


def one(*sides, name="dog", difficult=0):
    return OBJECT.format(*sides, name=name, difficult=difficult)


def annotation(*objects, size="<size><width>200</width><height>100</height></size>", filename="a.jpg"):
    return f"<annotation>\n  <filename>{filename}</filename>{size}{''.join(objects)}\n</annotation>"


@pytest.fixture
def export(tmp_path, draw_image):
    """Two images of 200 × 100 pixels; a function that writes the labels of the first and reads all."""
    (tmp_path / "images").mkdir()
    (tmp_path / "xml").mkdir()
    for name in ("a", "b"):
        Image.fromarray(draw_image(100, 200)).save(tmp_path / "images" / f"{name}.jpg")

    def read(text, name="a.xml", **options):
        (tmp_path / "xml" / name).write_text(text, encoding="utf-8")
        return read_voc(tmp_path / "xml", ImageFolder(tmp_path / "images"), **options)

    return read


def test_corners_count_from_one_and_belong_to_the_box(export):
    labels = export(annotation(one(1, 1, 200, 100), one(11, 21, 11, 21, name="cat")))
    assert labels.objects["a.jpg"] == [("dog", (0, 0, 200, 100), False), ("cat", (10, 20, 11, 21), False)]
    assert labels.classes == ["cat", "dog"]


def test_difficult_objects_and_fractions_of_pixels(export):
    labels = export(annotation(one(10.5, 20, 30.25, 40, difficult=1), one(5, 5, 9, 9, difficult="")))
    assert labels.objects["a.jpg"] == [("dog", (9.5, 19, 30.25, 40), True), ("dog", (4, 4, 9, 9), False)]


def test_boxes_that_count_from_zero_are_cut_off_at_the_edge(export):
    assert export(annotation(one(0, 0, 201, 50))).objects["a.jpg"][0].box == (0, 0, 200, 50)


def test_images_without_labels_have_no_objects(export):
    labels = export(annotation(one(5, 5, 9, 9)))
    assert labels.objects["b.jpg"] == []
    assert labels.notes == ["no label file for 1 image: taken as images without objects"]


def test_an_image_is_found_by_the_labels_name_and_else_by_filename(export, tmp_path):
    assert export(annotation(one(5, 5, 9, 9), filename="wrong.png")).objects["a.jpg"]
    (tmp_path / "xml" / "a.xml").unlink()
    for filename in ("b.jpg", "b.png", "b"):
        assert export(annotation(one(5, 5, 9, 9), filename=filename), "001.xml").objects["b.jpg"]
    with pytest.raises(InputError, match=r"b\.xml: another file has labels of b\.jpg, too"):
        export(annotation(one(5, 5, 9, 9), filename="b.jpg"), "b.xml")


def test_filename_decides_between_images_of_one_name(export, tmp_path, draw_image):
    Image.fromarray(draw_image(100, 200)).save(tmp_path / "images" / "a.png")
    for filename, found in (("a.png", "a.png"), ("a.jpg", "a.jpg")):
        labels = export(annotation(one(5, 5, 9, 9), filename=filename))
        assert [name for name, objects in labels.objects.items() if objects] == [found]
    for filename in ("b.jpg", "a.bmp", ""):
        with pytest.raises(InputError, match=r"a\.xml: there are a\.jpg and a\.png"):
            export(annotation(one(5, 5, 9, 9), filename=filename))


def test_filename_in_the_labels_folder_decides_first(export, tmp_path, draw_image):
    (tmp_path / "images" / "clip").mkdir()
    (tmp_path / "xml" / "clip").mkdir()
    for name in ("a.jpg", "a.png"):
        Image.fromarray(draw_image(100, 200)).save(tmp_path / "images" / "clip" / name)
    assert export(annotation(one(5, 5, 9, 9), filename="a.jpg"), "clip/a.xml").objects["clip/a.jpg"]


@pytest.mark.parametrize("filename", [".", "/", "..", "//"])
def test_a_filename_that_names_no_file(export, filename):
    with pytest.raises(InputError, match=r"001\.xml: no image "):
        export(annotation(one(5, 5, 9, 9), filename=filename), "001.xml")


@pytest.mark.parametrize("encoding", ["gbk", "klingon"])
def test_an_encoding_that_cannot_be_read(export, encoding):
    with pytest.raises(InputError, match=r"a\.xml: its encoding cannot be read \(.*\): save the file as UTF-8"):
        export(f'<?xml version="1.0" encoding="{encoding}"?>' + annotation(one(5, 5, 9, 9)))


@pytest.mark.parametrize("text, difficult", [("False", False), ("no", False), ("True", True), ("1", True)])
def test_difficult_as_a_word(export, text, difficult):
    assert export(annotation(one(5, 5, 9, 9, difficult=text))).objects["a.jpg"][0].difficult is difficult


def test_a_size_with_a_decimal_point(export):
    size = "<size><width>200.0</width><height>100.</height></size>"
    assert export(annotation(one(5, 5, 9, 9), size=size)).objects["a.jpg"]


def test_classes_in_an_order_of_ones_own(export, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert export(annotation(one(5, 5, 9, 9)), classes_file=tmp_path / "classes.txt").classes == ["dog", "cat"]
    with pytest.raises(InputError, match="xml: its classes cow are not in the file of --classes"):
        export(annotation(one(5, 5, 9, 9, name="cow")), classes_file=tmp_path / "classes.txt")


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_a_size_that_says_nothing_is_passed_over(export, size):
    assert export(annotation(one(5, 5, 9, 9), size=size)).objects["a.jpg"]


def test_labels_of_an_image_of_another_size_are_refused(export, tmp_path, draw_image):
    with pytest.raises(InputError, match=r"a.xml: labels an image of 20 × 10 pixels, but the image has 200 × 100$"):
        export(annotation(size="<size><width>20</width><height>10</height></size>"))
    turned = Image.fromarray(draw_image(100, 200))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "images" / "a.jpg", exif=exif)
    with pytest.raises(InputError, match="200 × 100 pixels, but the image has 100 × 200: its EXIF entry turns it"):
        export(annotation())
    upright = "<size><width>100</width><height>200</height></size>"
    assert export(annotation(one(1, 1, 100, 200), size=upright)).objects["a.jpg"][0].box == (0, 0, 100, 200)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "line 1: not XML (no element found)"),
        ("<annotation>\n<object>\n</annotation>", "line 3: not XML (mismatched tag)"),
        ("<html></html>", "line 1: <html>, not the <annotation>"),
        (annotation(one(1, 1, 9, "wide")), "line 3: dog: <ymax> is 'wide', not a number"),
        (annotation(one(1, 1, 9, 9), one(1, "", 9, 9)), "line 9: dog: <ymin> is '', not a number"),
        (annotation("\n<object><name>dog</name></object>"), "line 3: dog: <xmin> is ''"),
        (annotation(one(1, 1, 9, "inf")), "line 3: dog: a side of the box is not finite"),
        (annotation(one(9, 1, 5, 9)), "line 3: dog: the box has no area"),
        (annotation(one(300, 1, 310, 9)), "line 3: dog: the box (299, 0, 310, 9) lies outside the image"),
        (annotation(one(1, 1, 9, 9, name=" ")), "line 3: an object without <name>"),
    ],
)
def test_faults_are_told_by_file_and_line(export, tmp_path, text, words):
    with pytest.raises(InputError) as error:
        export(text)
    assert str(error.value).startswith(f"{tmp_path / 'xml' / 'a.xml'}, {words}")


def test_no_object_at_all(export, tmp_path):
    with pytest.raises(InputError, match="xml: no class names in it"):
        export(annotation())
