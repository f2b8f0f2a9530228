"""Protects the reading of YOLO's labels: boxes, polygons, the names of the classes, every fault by file and line."""

import pytest
from PIL import Image

from odutils.coco.labels import ImageFolder
from odutils.coco.yolo import read_yolo
from odutils.errors import InputError


@pytest.fixture
def export(tmp_path, draw_image):
    """Three images of 200 × 100 pixels; a function that writes the labels of the first and reads all."""
    for name in ("a", "b", "clip/c"):
        (tmp_path / "images" / f"{name}.jpg").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / f"{name}.txt").parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_image(100, 200)).save(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "data.yaml").write_text("names: [person, hard hat]\n")
    (tmp_path / "labels" / "clip" / "c.txt").write_text("1 0.5 0.5 1 1")

    def read(text, **options):
        (tmp_path / "labels" / "a.txt").write_text(text, encoding="utf-8")
        return read_yolo(tmp_path / "labels", ImageFolder(tmp_path / "images"), **options)

    return read


def test_boxes_become_pixels_and_images_without_labels_have_no_objects(export, tmp_path):
    labels = export("\ufeff1 0.5 0.5 0.25 0.5\n\n0\t0.1 0.2 0.1 0.2\r\n")
    assert labels.classes == ["person", "hard hat"]
    assert labels.objects["a.jpg"] == [
        ("hard hat", pytest.approx((75, 25, 125, 75)), False),
        ("person", pytest.approx((10, 10, 30, 30)), False),
    ]
    assert labels.objects["b.jpg"] == [] and labels.objects["clip/c.jpg"] == [("hard hat", (0, 0, 200, 100), False)]
    assert labels.notes == [
        f"class names: {tmp_path / 'data.yaml'}",
        "no label file for 1 image: taken as images without objects",
    ]


def test_an_empty_label_file_is_an_image_without_objects(export):
    assert export("\n").objects["a.jpg"] == []


def test_polygons_become_the_boxes_around_them(export):
    labels = export("0 0.1 0.5 0.3 0.2 0.2 0.9\n1 0.5 0.1 0.9 0.5 0.5 0.9 0.1 0.5")
    assert [one.box for one in labels.objects["a.jpg"]] == [
        pytest.approx((20, 20, 60, 90)),
        pytest.approx((20, 10, 180, 90)),
    ]
    keypoints = "(keypoints of pose labels look the same, and would give wrong boxes)"
    assert f"2 polygons became the bounding boxes around them {keypoints}" in labels.notes


def test_boxes_that_reach_over_the_edge_are_cut_off(export):
    assert export("0 0.05 1.0005 0.2 0.5").objects["a.jpg"][0].box == pytest.approx((0, 75.05, 30, 100))


def test_coordinates_are_of_the_upright_image(export, tmp_path, draw_image):
    """YOLO's own loader turns images by their EXIF entry, too."""
    image = Image.fromarray(draw_image(100, 200))
    exif = image.getexif()
    exif[0x0112] = 8
    image.save(tmp_path / "images" / "a.jpg", exif=exif)
    assert export("0 0.5 0.5 1 0.5").objects["a.jpg"][0].box == pytest.approx((0, 50, 100, 150))


@pytest.mark.parametrize("place", ["labels/classes.txt", "classes.txt", "labels/obj.names", "../classes.txt"])
def test_where_the_names_of_the_classes_may_be(export, tmp_path, place):
    (tmp_path / "data.yaml").unlink()
    file = (tmp_path / place).resolve()
    file.write_text("cat\ndog\n")
    try:
        assert export("1 0.5 0.5 0.25 0.5").objects["a.jpg"][0].name == "dog"
    finally:
        file.unlink()


def test_a_file_of_names_is_preferred_where_it_is_given(export, tmp_path):
    (tmp_path / "own.txt").write_text("cat\ndog\n")
    assert export("1 0.5 0.5 0.2 0.5", classes_file=tmp_path / "own.txt").objects["a.jpg"][0].name == "dog"
    (tmp_path / "data.yaml").unlink()
    with pytest.raises(InputError, match="labels: no data.yaml and no classes.txt.* --classes"):
        export("")


@pytest.mark.parametrize(
    "line, words",
    [
        ("person 0.5 0.5 0.1 0.1", "class 'person' is not a number from 0 to 1"),
        ("2 0.5 0.5 0.1 0.1", "class '2' is not a number from 0 to 1"),
        ("9" * 5000 + " 0.5 0.5 0.1 0.1", "9...9"),
        ("-1 0.5 0.5 0.1 0.1", "class '-1' is not"),
        ("0 0.5 0.5 0.1", "3 numbers after the class, not 4"),
        ("0 0.5 0.5 0.1 0.1 0.9", "5 numbers after the class, not 4"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "7 numbers"),
        ("0", "0 numbers"),
        ("0 0.5 0,5 0.1 0.1", "'0.5 0,5 0.1 0.1' are not numbers"),
        ("0 0.5 nan 0.1 0.1", "nan is not a normalised coordinate, from 0 to 1"),
        ("0 0.5 inf 0.1 0.1", "inf is not a normalised coordinate"),
        ("0 120 40 20 30", "120 is not a normalised coordinate, from 0 to 1: are these pixels?"),
        ("0 0.5 -0.2 0.1 0.1", "-0.2 is not a normalised coordinate"),
        ("0 0.5 0.5 0 0.1", "the box has no area"),
        ("0 0.5 0.5 0.5 0.5 0.5 0.5", "the box has no area"),
    ],
)
def test_faults_are_told_by_file_and_line(export, tmp_path, line, words):
    with pytest.raises(InputError) as error:
        export(f"0 0.5 0.5 0.5 0.5\n\n{line}\n")
    assert str(error.value).startswith(f"{tmp_path / 'labels' / 'a.txt'}, line 3: ") and words in str(error.value)


def test_labels_without_an_image_and_other_files(export, tmp_path):
    (tmp_path / "labels" / "ghost.txt").write_text("")
    with pytest.raises(InputError, match=r"ghost.txt: no image ghost\.\* in .*images$"):
        export("")
    (tmp_path / "labels" / "ghost.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"a.txt, line 1: .* \(and 1 more fault\)$"):
        export("x")


def test_other_texts_are_passed_over(export, tmp_path):
    (tmp_path / "labels" / "README.txt").write_text("Exported by a tool\non 1 2 2024 at 10 30\n")
    (tmp_path / "labels" / "train.txt").write_text("data/a.jpg\ndata/b.jpg\n")
    labels = export("0 0.5 0.5 0.5 0.5")
    assert len(labels.objects["a.jpg"]) == 1 and "passed over, no labels: README.txt, train.txt" in labels.notes
    (tmp_path / "labels" / "ghost.txt").write_text("a title\n0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(InputError, match=r"ghost.txt: no image ghost\.\*"):
        export("")


def test_a_folder_of_other_texts_is_no_folder_of_labels(export, tmp_path):
    images = ImageFolder(tmp_path / "images")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "classes.txt").write_text("dog\n")
    for more in ("", "a line\n"):
        if more:
            (tmp_path / "texts" / "README.txt").write_text(more)
        with pytest.raises(InputError, match="texts: no label file in it belongs to an image in .*images"):
            read_yolo(tmp_path / "texts", images)


def test_an_export_of_cvat(tmp_path, draw_image):
    """Images and labels in one folder, the list of images beside it, class names in obj.names."""
    folder = tmp_path / "obj_train_data"
    folder.mkdir()
    Image.fromarray(draw_image(100, 200)).save(folder / "a.jpg")
    (folder / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n")
    (tmp_path / "obj.names").write_text("person\nhard hat\n")
    (tmp_path / "train.txt").write_text("data/obj_train_data/a.jpg\n")
    for place in (folder, tmp_path):
        labels = read_yolo(place, ImageFolder(place), classes_file=tmp_path / "obj.names")
        assert labels.classes == ["person", "hard hat"]
        assert list(labels.objects.values()) == [[("hard hat", pytest.approx((75, 25, 125, 75)), False)]]
