"""Protects the division of a data set: whole groups, everything in the file kept, the original untouched, and nothing
left behind where it cannot be done."""

import json
import shutil

import pytest

from odutils.coco import splitting
from odutils.coco.checking import check_dataset
from odutils.coco.splitting import split_dataset
from odutils.errors import InputError

SHARES = {"train": 0.5, "val": 0.25, "test": 0.25}


@pytest.fixture
def data(tmp_path, write_dataset):
    """16 images of eight scenes, with a dog each and a cat in every second; and keys that nothing here knows."""
    dog, cat = {"bbox": [5, 5, 30, 20], "category_id": 3}, {"bbox": [50, 5, 30, 20], "category_id": 7, "note": "grey"}
    objects = [[dog, cat] if index % 4 < 2 else [dog] for index in range(16)]
    about = [{"scene": f"scene {index // 2}", "licence": 1} for index in range(16)]
    more = {"info": {"year": 2024}, "licenses": [{"id": 1}], "labelled_classes_by_source": {}}
    return write_dataset(tmp_path / "data", objects, {3: "dog", 7: "cat"}, "all", images=about, **more)


def read(out, part):
    return json.loads((out / "annotations" / f"instances_{part}.json").read_text())


def test_the_parts_are_the_data_set(data, tmp_path):
    out = tmp_path / "out"
    parts = split_dataset(data, "all", out, SHARES, by="scene")
    whole = read(data, "all")
    contents = {name: read(out, name) for name in SHARES}
    for kind in ("images", "annotations"):
        joined = [one for content in contents.values() for one in content[kind]]
        assert sorted(joined, key=lambda one: one["id"]) == whole[kind]
    for name, content in contents.items():
        assert check_dataset(out, name) == []
        assert {key: content[key] for key in content.keys() - {"images", "annotations"}} == {
            key: whole[key] for key in whole.keys() - {"images", "annotations"}
        }
        for image in content["images"]:
            file = image["file_name"]
            assert (out / name / file).read_bytes() == (data / "all" / file).read_bytes()
    scenes = [{image["scene"] for image in content["images"]} for content in contents.values()]
    assert len(set.union(*scenes)) == sum(map(len, scenes)) == 8
    assert [(p.name, p.groups, p.images) for p in parts] == [("train", 4, 8), ("val", 2, 4), ("test", 2, 4)]
    assert [p.objects for p in parts] == [{"dog": 8, "cat": 4}, {"dog": 4, "cat": 2}, {"dog": 4, "cat": 2}]


def test_the_same_seed_divides_in_the_same_way(data, tmp_path):
    def divide(name, seed):
        split_dataset(data, "all", tmp_path / name, SHARES, by="image", seed=seed)
        return [[image["id"] for image in read(tmp_path / name, part)["images"]] for part in SHARES]

    first = divide("first", 4)
    assert divide("again", 4) == first
    assert any(divide(f"other {seed}", seed) != first for seed in range(5, 8))


def test_images_are_copied_where_there_are_no_links(data, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links on this disk")

    split_dataset(data, "all", tmp_path / "linked", SHARES, by="scene")
    assert all(path.stat().st_nlink == 2 for path in (data / "all").iterdir())
    monkeypatch.setattr(splitting.os, "link", refuse)
    split_dataset(data, "all", tmp_path / "copied", SHARES, by="scene")
    assert all(path.stat().st_nlink == 2 for path in (data / "all").iterdir())
    assert check_dataset(tmp_path / "copied", "train") == []


def test_an_empty_folder_may_be_there_and_images_may_lie_in_folders(data, tmp_path):
    (data / "all" / "deep").mkdir()
    shutil.move(data / "all" / "0001.png", data / "all" / "deep" / "0001.png")
    content = read(data, "all")
    content["images"][0]["file_name"] = "deep\\0001.png"
    (data / "annotations" / "instances_all.json").write_text(json.dumps(content))
    (tmp_path / "out").mkdir()
    split_dataset(data, "all", tmp_path / "out", SHARES, by="scene")
    assert len(list((tmp_path / "out").glob("*/deep/0001.png"))) == 1
    assert sum(len(check_dataset(tmp_path / "out", part)) for part in SHARES) == 0


def refused(data, out, words, shares=SHARES, by="scene"):
    before = sorted(out.parent.rglob("*"))
    with pytest.raises(InputError, match=words):
        split_dataset(data, "all", out, shares, by=by)
    assert sorted(out.parent.rglob("*")) == before


def test_what_cannot_be_divided_is_refused_and_nothing_is_left(data, tmp_path):
    out = tmp_path / "out"
    refused(data, out, r"1 group by 'folder' for 3 parts: choose another --by", by="folder")
    refused(data, out, r"1 group by 'name' for 3 parts", by="name")  # 0001.png, 0002.png, …
    refused(data, out, r"images\[0\] has no .* 'place'; its keys are .*scene", by="place")
    for shares, words in (
        ({"train": 0.6, "val": 0.3}, "train=0.6, val=0.3: .* add up to 1, not 0.9"),
        ({"train": 1.0}, "between 0 and 1"),
        ({"train": 0.9999}, "name two or more"),
        ({"train": 0.5, "../val": 0.5}, "'../val': must be the name of a folder"),
        ({"train": 0.5, "annotations": 0.5}, "'annotations': must"),
        ({"train": 1.5, "val": -0.5}, "train=1.5: its share"),
    ):
        refused(data, out, words, shares)
    out.mkdir()
    (out / "mine").touch()
    refused(data, out, "out: is not empty")
    (out / "mine").unlink()
    (data / "all" / "0009.png").unlink()
    refused(data, out, "0009.png: no such image")


@pytest.mark.parametrize("again", ["0001.png", "./0001.png", "deep\\..\\0001.png"])
def test_an_image_that_is_listed_twice_is_refused(data, tmp_path, again):
    content = read(data, "all")
    content["images"][5]["file_name"] = again
    (data / "annotations" / "instances_all.json").write_text(json.dumps(content))
    refused(data, tmp_path / "out", "instances_all.json: two images are called '0001.png'", by="image")


def test_a_faulty_data_set_is_refused(data, tmp_path):
    content = read(data, "all")
    content["annotations"][3]["image_id"] = 99
    (data / "annotations" / "instances_all.json").write_text(json.dumps(content))
    refused(data, tmp_path / "out", r"annotations\[3\]: no image has the id 99.* check")
    content["annotations"][3]["image_id"] = 1
    content["images"][0]["file_name"] = "../../secret.png"
    (data / "annotations" / "instances_all.json").write_text(json.dumps(content))
    refused(data, tmp_path / "out", "'../../secret.png' lies outside")
