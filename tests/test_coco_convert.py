"""Protects conversion: the data set is COCO's layout without a fault, the originals stay, what is there already stays,
and whatever goes wrong leaves everything as it was."""

import errno
import json
import os
import shutil

import pytest
from PIL import Image

from odutils.coco.checking import check_dataset
from odutils.coco.convert import convert
from odutils.datasets import CocoDetections
from odutils.errors import InputError, UnreadableError

XML = """<annotation><filename>{0}.jpg</filename><object><name>dog</name><difficult>1</difficult>
<bndbox><xmin>11</xmin><ymin>21</ymin><xmax>40</xmax><ymax>60</ymax></bndbox></object></annotation>"""


@pytest.fixture
def export(tmp_path, draw_image):
    """Images and their labels in YOLO's format: a.jpg, upright; clip/b.jpg, turned by its EXIF entry; c.png, none."""
    images, labels = tmp_path / "images", tmp_path / "labels"
    (images / "clip").mkdir(parents=True)
    (labels / "clip").mkdir(parents=True)
    Image.fromarray(draw_image(80, 120, 1)).save(images / "a.jpg")
    turned = Image.fromarray(draw_image(80, 120, 2))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(images / "clip" / "b.jpg", exif=exif)
    Image.fromarray(draw_image(80, 120, 3)).save(images / "c.png")
    (images / "raw.cr2").touch()
    (tmp_path / "data.yaml").write_text("names: [dog, cat]")
    (labels / "a.txt").write_text("1 0.5 0.5 0.25 0.5\n0 0.3333333 0.25 0.1 0.1")
    (labels / "clip" / "b.txt").write_text("0 0.5 0.75 1 0.5")
    return tmp_path


def content_of(out, split="train"):
    return json.loads((out / "annotations" / f"instances_{split}.json").read_text())


def state(folder):
    """Everything in a folder: names, and of files contents and times."""
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_a_data_set_without_faults(export):
    before = state(export)
    out = export / "new" / "my_data"
    done = convert(export / "labels", "yolo", export / "images", out)
    assert check_dataset(out, "train") == []
    content = content_of(out)
    assert content["info"] == {"description": "converted from yolo by odutils"}
    assert content["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in content["images"]] == [
        (1, "a.jpg", 120, 80),
        (2, "c.png", 120, 80),
        (3, "clip/b.jpg", 80, 120),
    ]
    assert content["annotations"] == [
        {"id": 1, "image_id": 1, "category_id": 2, "bbox": [45, 20, 30, 40], "area": 1200, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 1, "bbox": [34, 16, 12, 8], "area": 96, "iscrowd": 0},
        {"id": 3, "image_id": 3, "category_id": 1, "bbox": [0, 60, 80, 60], "area": 4800, "iscrowd": 0},
    ]
    assert (done.file, done.images, done.empty) == (out / "annotations" / "instances_train.json", 3, 1)
    assert done.objects == {"dog": 2, "cat": 1}
    assert done.notes[-1] == f"{export / 'images'}: passed over: 1 .cr2 (save as JPEG or PNG)"
    for name in ("a.jpg", "c.png", "clip/b.jpg"):
        assert (out / "train" / name).read_bytes() == (export / "images" / name).read_bytes()
    shutil.rmtree(export / "new")
    assert state(export) == before  # nothing was moved


def test_what_was_difficult_is_difficult_in_the_data_set(export):
    (export / "xml").mkdir()
    (export / "xml" / "a.xml").write_text(XML.format("a"))
    convert(export / "xml", "voc", export / "images", export / "out", "val")
    (annotation,) = content_of(export / "out", "val")["annotations"]
    assert annotation["difficult"] == 1 and annotation["bbox"] == [10, 20, 30, 40]
    assert CocoDetections(export / "out", "val").labels[0].tolist() == [-1]


def test_another_split_joins_what_is_there(export):
    out = export / "out"
    convert(export / "labels", "yolo", export / "images", out)
    before = state(out)
    convert(export / "labels", "yolo", export / "images", out, "val")
    after = state(out)
    assert {name: after[name] for name in before} == before
    assert check_dataset(out, "train") == check_dataset(out, "val") == []


def test_images_that_are_in_their_place_already_stay_there(export):
    out = export / "out"
    shutil.copytree(export / "images", out / "train")
    before = state(out / "train")
    convert(export / "labels", "yolo", out / "train", out)
    assert state(out / "train") == before and check_dataset(out, "train") == []


def refused(export, words, error=InputError, kind="yolo", source="labels", split="train"):
    """The call is refused with these words, and nothing has changed."""
    before = state(export)
    with pytest.raises(error, match=words):
        convert(export / source, kind, export / "images", export / "out", split)
    assert state(export) == before


def test_what_is_there_is_never_replaced(export):
    (export / "out" / "train").mkdir(parents=True)
    (export / "out" / "train" / "c.png").write_text("mine")
    refused(export, r"train/c.png: already exists, with other content than .*images/c.png")
    (export / "out" / "train" / "c.png").unlink()
    (export / "out" / "annotations").mkdir()
    (export / "out" / "annotations" / "instances_train.json").write_text("mine")
    refused(export, "instances_train.json: already exists: choose another --split")


def test_faults_leave_nothing_behind(export):
    (export / "labels" / "c.txt").write_text("7 0.5 0.5 0.1 0.1")
    refused(export, "c.txt, line 1: class '7'")
    refused(export, "no .xml files", kind="voc")
    refused(export, "not a JSON export", kind="label-studio")
    refused(export, "none: no such folder", source="none")
    for split in ("", "..", "a/b", "a\\b", "annotations"):
        refused(export, "must be the name of a folder", split=split)
    (export / "images" / "a.jpg").write_bytes(b"rubbish")
    refused(export, "a.jpg: cannot be read as an image", UnreadableError)


def test_boxes_of_no_pixel_are_refused_and_those_of_one_are_told(export):
    (export / "labels" / "c.txt").write_text("0 0.5 0.5 0.000001 0.5")
    refused(export, r"c.png: a box of dog has no area when rounded to 3 decimals: \[60.0, 20.0, 0.0, 40.0\]")
    (export / "labels" / "c.txt").write_text("0 0.5 0.5 0.005 0.005")
    done = convert(export / "labels", "yolo", export / "images", export / "out")
    assert "boxes below a pixel: 1; `check` lists them" in done.notes
    assert [problem.kind for problem in check_dataset(export / "out", "train")] == ["box below a pixel"]


@pytest.mark.parametrize("there", [False, True])
@pytest.mark.parametrize("failing", ["second image", "annotation file"])
def test_a_full_disk_leaves_nothing_behind(export, monkeypatch, failing, there):
    from odutils.coco import convert as module

    copy, copied = shutil.copyfile, []

    def full(*arguments):
        if failing == "second image" and copied:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        copied.append(copy(*arguments))

    def no_text(self, text):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if there:
        (export / "out" / "train").mkdir(parents=True)
        (export / "out" / "train" / "own.jpg").write_text("mine")
    before = state(export)
    monkeypatch.setattr(module.shutil, "copyfile", full)
    if failing == "annotation file":
        monkeypatch.setattr(type(export), "write_text", no_text)
    with pytest.raises(InputError, match="cannot write .*No space left"):
        convert(export / "labels", "yolo", export / "images", export / "out")
    assert state(export) == before and copied
