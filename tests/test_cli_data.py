"""Protects the commands that make data sets: what `convert` and `split` print and refuse, and the whole way from the
labels of another program to a trained detector."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from trainings import make_quick, run

from odutils.sample.make import make_sample


@pytest.fixture
def ran(capsys):
    """ran(code, *arguments): the lines on stdout and on stderr of a command that ends with this exit code."""

    def check(code, *arguments):
        capsys.readouterr()
        assert run(*arguments) == code
        captured = capsys.readouterr()
        return captured.out.splitlines(), captured.err.splitlines()

    return check


@pytest.fixture
def yolo(tmp_path):
    """The sample's training images as a YOLO export: 24 images of six clips, each with three classes at most."""
    sample = make_sample(tmp_path / "sample", images=(24, 1), size=64, seed=2, objects=(1, 3))
    content = json.loads((sample / "annotations" / "instances_train.json").read_text())
    root = tmp_path / "export"
    (root / "labels").mkdir(parents=True)
    (root / "images").mkdir()
    (root / "data.yaml").write_text("nc: 3\nnames:\n  0: person\n  1: helmet\n  2: it's a vest\n")
    for image in content["images"]:
        name = f"clip{image['id'] % 6}_{image['id']:03}"
        shutil.copy(sample / "train" / image["file_name"], root / "images" / f"{name}.jpg")
        lines = []
        for one in content["annotations"]:
            if one["image_id"] == image["id"]:
                x, y, width, height = one["bbox"]
                normalised = [x + width / 2, y + height / 2, width, height]
                sides = [image["width"], image["height"]] * 2
                numbers = " ".join(f"{number / side:.6f}" for number, side in zip(normalised, sides, strict=True))
                lines.append(f"{one['category_id'] % 3} {numbers}\n")
        (root / "labels" / f"{name}.txt").write_text("".join(lines))
    (root / "labels" / "clip1_001.txt").unlink()
    return root


def convert(yolo, out, *more):
    return ("convert", yolo / "labels", "--from", "yolo", "--images", yolo / "images", "--out", out, *more)


def test_from_the_labels_of_another_program_to_detections(yolo, tmp_path, ran, monkeypatch):
    make_quick(monkeypatch)
    data, parts, out = tmp_path / "data", tmp_path / "parts", tmp_path / "run"
    lines, complaints = ran(0, *convert(yolo, data, "--split", "all"))
    file = data / "annotations" / "instances_all.json"
    assert lines[0] == f"{file}: 24 images, 1 of them without objects" and not complaints
    assert re.fullmatch(r"\d+ objects: person \d+, helmet \d+, it's a vest \d+", lines[1])
    assert lines[-2:] == [
        "no label file for 1 image: taken as images without objects",
        f"look for faults: python -m odutils check --data {data} --split all",
    ]
    assert ran(0, "check", "--data", data) == ([f"{data}, all: no problems found"], [])

    options = ("--data", data, "--out", parts, "--parts", "train=0.5", "val=0.25", "test=0.25")
    lines, complaints = ran(0, "split", *options)
    table = [line.rsplit(maxsplit=3) for line in lines[1:-1]]
    assert lines[0].split() == ["train", "val", "test"] and not complaints
    assert [row[0] for row in table] == [
        "groups", "images", "objects", "share of the objects", "person", "helmet", "it's a vest",
    ]  # fmt: skip
    assert sum(map(int, table[0][1:])) == 6 and sum(map(int, table[1][1:])) == 24
    by_class = [sum(int(row[column]) for row in table[4:]) for column in (1, 2, 3)]
    assert by_class == list(map(int, table[2][1:]))
    lines, _ = ran(0, "check", "--data", parts)
    assert lines == [f"{parts}, {name}: no problems found" for name in ("test", "train", "val")]
    clips = [{path.name.split("_")[0] for path in (parts / name).iterdir()} for name in ("train", "val", "test")]
    assert len(set.union(*clips)) == sum(map(len, clips)) == 6

    common = ("--size", 64, "--batch-size", 4, "--workers", 0, "--device", "cpu")
    lines, _ = ran(0, "train", "--data", parts, "--out", out, "--epochs", 2, "--patience", 2, *common)
    assert "classes (3): person, helmet, it's a vest" in lines
    weights = out / "best.safetensors"
    lines, _ = ran(0, "evaluate", "--data", parts, "--split", "test", "--weights", weights)
    assert lines[0].startswith(f"{len(list((parts / 'test').iterdir()))} images of {parts}, test; AP is")
    found = tmp_path / "found.json"
    drawn = ("--out", tmp_path / "drawn", "--threshold", 0.001, "--json", found)
    assert run("detect", parts / "test", "--weights", weights, *drawn) == 0
    content = json.loads(found.read_text())
    assert {image["file_name"] for image in content["images"]} == {path.name for path in (parts / "test").iterdir()}
    assert content["annotations"] and content["categories"][1] == {"id": 2, "name": "helmet"}


def test_one_line_for_what_cannot_be_converted(yolo, tmp_path, ran):
    label = yolo / "labels" / "clip2_002.txt"
    label.write_text(label.read_text() + "9 0.5 0.5 0.1 0.1\n")
    _, (line,) = ran(2, *convert(yolo, tmp_path / "data"))
    assert line.startswith(f"odutils: {label}, line ") and "class '9' is not a number from 0 to 2" in line
    assert not (tmp_path / "data").exists()
    (yolo / "images" / "clip3_003.jpg").write_text("no image")
    _, (line,) = ran(1, *convert(yolo, tmp_path / "data"))
    assert "clip3_003.jpg: cannot be read as an image" in line
    _, (line,) = ran(2, "convert", yolo, "--from", "voc", "--images", yolo / "none", "--out", tmp_path / "data")
    assert "none: no such folder" in line


def test_one_line_for_what_cannot_be_split(yolo, tmp_path, ran):
    data, out = tmp_path / "data", tmp_path / "out"
    assert run(*convert(yolo, data)) == run(*convert(yolo, data, "--split", "val")) == 0
    half = ("--out", out, "--parts", "train=0.5", "val=0.5")
    _, (line,) = ran(2, "split", "--data", data, *half)
    assert f"{data}: name one of its splits with --split: train, val" in line
    _, (line,) = ran(2, "split", "--data", data, "--split", "test", *half)
    assert "no split 'test'" in line
    _, (line,) = ran(2, "split", "--data", data, "--split", "val", *half, "--by", "folder")
    assert "1 group by 'folder' for 2 parts" in line
    _, (line,) = ran(2, "split", "--data", data, "--split", "val", *half, "val=0.0")
    assert "names a part twice" in line
    assert not out.exists()


def test_a_class_that_a_part_lacks_is_told_in_a_sentence(tmp_path, write_dataset, ran):
    dog, cat = {"bbox": [5, 5, 30, 20], "category_id": 1}, {"bbox": [50, 5, 30, 20], "category_id": 2}
    data = write_dataset(tmp_path / "data", [[dog, cat], [dog], [dog]], {1: "dog", 2: "cat", 3: "cow"})
    parts = ("--parts", "train=0.34", "val=0.33", "test=0.33", "--by", "image")
    lines, (line,) = ran(0, "split", "--data", data, "--out", tmp_path / "out", *parts)
    assert re.fullmatch(
        "odutils: no object of cat in (train|val|test), cat in (val|test): "
        "too few groups have one, or the shares do not allow it; another --seed may",
        line,
    )
    assert not any(row.startswith("cow") for row in lines)  # nowhere in the data set


def test_data_sets_are_made_without_importing_torch(yolo, tmp_path):
    """torch takes seconds to import, and none of it is needed."""
    script = "import sys; from odutils.__main__ import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    for arguments in (
        convert(yolo, tmp_path / "data"),
        ("split", "--data", tmp_path / "data", "--out", tmp_path / "out", "--parts", "train=0.5", "val=0.5"),
        ("check", "--data", tmp_path / "out"),
    ):
        command = [sys.executable, "-c", script, *map(str, arguments)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ran.stdout.splitlines()[-1] == "False"
