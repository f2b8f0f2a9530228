"""Protects that the race can be repeated: the lists of images are complete and apart, and from COCO and VOC they
become one data set in COCO's layout, with boxes at the new scale and the classes that each source labels."""

import json

import numpy as np
import pytest
import rebuild_photos
from PIL import Image

from odutils.classes import CLASSES
from odutils.coco.checking import check_dataset
from odutils.datasets import CocoDetections
from odutils.errors import InputError
from odutils.files import DATA

VOC_FILE = """<annotation><object><name>tvmonitor</name><difficult>1</difficult>
<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>250</xmax><ymax>100</ymax></bndbox></object>
<object><name>dog</name><bndbox><xmin>251</xmin><ymin>101</ymin><xmax>500</xmax><ymax>375</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def originals(tmp_path):
    """One image of COCO, one of VOC."""
    coco, voc = tmp_path / "coco", tmp_path / "VOCdevkit"
    for folder in (coco / "annotations", coco / "val2017"):
        folder.mkdir(parents=True)
    for folder in ("Annotations", "JPEGImages"):
        (voc / "VOC2007" / folder).mkdir(parents=True)
    Image.new("RGB", (640, 480), "red").save(coco / "val2017" / "000000000139.jpg")
    Image.new("RGB", (500, 375), "blue").save(voc / "VOC2007" / "JPEGImages" / "000007.jpg")
    (voc / "VOC2007" / "Annotations" / "000007.xml").write_text(VOC_FILE)
    content = {
        "images": [{"id": 139, "file_name": "000000000139.jpg", "width": 640, "height": 480}],
        "annotations": [
            {"id": 5, "image_id": 139, "category_id": 90, "bbox": [20, 40, 100, 60], "area": 3000.0, "iscrowd": 0},
            {"id": 6, "image_id": 139, "category_id": 1, "bbox": [0, 0, 640, 480], "area": 9000.0, "iscrowd": 1},
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
    }
    (coco / "annotations" / "instances_val2017.json").write_text(json.dumps(content))
    return coco, voc


def test_one_data_set_of_both(originals, tmp_path):
    out = tmp_path / "photos"
    wanted = {"coco2017_val": [139], "voc2007_test": ["000007"]}
    assert rebuild_photos.rebuild_split(wanted, *originals, out, "dev") == 2
    assert not len(check_dataset(out, "dev"))
    dataset = CocoDetections(out, "dev", 320)
    assert [dataset.image(i).shape for i in range(2)] == [(240, 320, 3), (240, 320, 3)]
    assert dataset.boxes[0].tolist() == [[10, 20, 60, 50], [0, 0, 320, 240]]
    assert dataset.labels[0].tolist() == [CLASSES.index("toothbrush") + 1, -1]
    assert np.allclose(dataset.boxes[1], [[0, 0, 160, 64], [160, 64, 320, 240]])
    assert dataset.labels[1].tolist() == [-1, CLASSES.index("dog") + 1]  # what is difficult does not count
    assert dataset.known(0).all() and dataset.known(1).sum() == 20 and dataset.known(1)[CLASSES.index("tv")]
    assert dataset.coco.anns[1]["area"] == pytest.approx(3000 / 4)  # the mask's, not the box's


def test_what_is_missing_is_named(originals, tmp_path):
    with pytest.raises(InputError, match="no image 140"):
        rebuild_photos.rebuild_split({"coco2017_val": [140]}, *originals, tmp_path / "out", "dev")
    with pytest.raises(InputError, match="000008.xml: no such file"):
        rebuild_photos.rebuild_split({"voc2007_test": ["000008"]}, *originals, tmp_path / "out", "dev")


def test_the_lists_of_images_are_apart():
    lists = {s: json.loads((DATA / "weights" / file).read_text()) for s, file in rebuild_photos.SPLITS.items()}
    counts = {split: {source: len(ids) for source, ids in of.items()} for split, of in lists.items()}
    assert sum(counts["train"].values()) == 10374 and set(counts["dev"].values()) == {250}
    assert counts["dev_large"] == {"coco2017_val": 550, "voc2007_test": 750}
    for source, ids in lists["dev_large"].items():
        assert len(set(ids)) == len(ids) and not set(ids) & set(lists["train"][source])
        assert set(lists["dev"][source]) < set(ids)
