"""Protects the command line: right answers in the promised form, and for every bad input one line and an exit code."""

import errno
import json
import os
import re
import subprocess
import sys
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image
from trainings import run

from odutils import files, training
from odutils.classes import CATEGORY_IDS, CLASSES
from odutils.datasets import CocoDetections
from odutils.drawing import write_image
from odutils.evaluation import NAMES, predict, score_by_source
from odutils.images import read_image
from odutils.inference import Predictor
from odutils.presets import build, save_detector
from odutils.recipe import Recipe
from odutils.sample.make import make_sample
from odutils.weights import load_weights, save_weights

COMMANDS = ("detect", "video", "train", "evaluate", "export", "convert", "check", "split", "download coco")
COMMANDS += ("download weights", "sample")
THRESHOLD = 0.8


def save_random(path, classes=CLASSES):
    """Untrained weights whose scores are high enough for some boxes to be drawn."""
    torch.manual_seed(0)
    detector = build("pyramid", classes).train()
    torch.nn.init.normal_(detector.head.class_output.weight, std=0.1)
    for norm in (module for module in detector.modules() if isinstance(module, torch.nn.BatchNorm2d)):
        norm.momentum = None  # its statistics become the next batch's, without which signals fade on their way
    with torch.no_grad():
        detector(torch.randint(256, (4, 3, 128, 128), dtype=torch.uint8))
    save_detector(path, detector)
    return path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return save_random(tmp_path_factory.mktemp("weights") / "random.safetensors")


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("data") / "sample", images=(8, 4), size=96, seed=1)


@pytest.fixture
def images(tmp_path, draw_image):
    """Two folders with an image of the same name in each."""
    paths = [tmp_path / "first" / "cat.jpg", tmp_path / "second" / "cat.jpg"]
    for seed, path in enumerate(paths):
        write_image(path, draw_image(120 + 40 * seed, 160, seed))
    return paths


@pytest.fixture
def complaint(capfd):
    """complaint(code, *arguments): the one line that a command which fails with this exit code says on stderr."""

    def check(code, *arguments):
        capfd.readouterr()
        assert run(*arguments) == code
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("odutils: "), lines
        assert "Traceback" not in lines[0]
        return lines[0]

    return check


def detect(weights, tmp_path, *arguments):
    return ("detect", "--weights", weights, "--threshold", THRESHOLD, "--out", tmp_path / "out", *arguments)


# ---- what it does when all is well


def test_detect_draws_prints_and_writes_cocos_form(images, weights, tmp_path, capsys):
    found = tmp_path / "found.json"
    assert run(*detect(weights, tmp_path, images[0], tmp_path / "second", "--json", found)) == 0
    content = json.loads(found.read_text())
    predictor = Predictor.from_weights(weights)
    expected = [predictor(path, threshold=THRESHOLD) for path in images]
    assert min(len(one.boxes) for one in expected) > 0

    assert [(one["id"], one["file_name"]) for one in content["images"]] == [
        (1, "first/cat.jpg"),
        (2, "second/cat.jpg"),
    ]
    assert [(one["width"], one["height"]) for one in content["images"]] == [(160, 120), (160, 160)]
    assert [c["name"] for c in content["categories"]] == list(CLASSES)
    for image_id, one in enumerate(expected, start=1):
        written = [a for a in content["annotations"] if a["image_id"] == image_id]
        x, y, width, height = np.float32([a["bbox"] for a in written]).T
        np.testing.assert_allclose(np.stack([x, y, x + width, y + height], axis=1), one.boxes, atol=1e-3)
        assert [a["category_id"] for a in written] == [CATEGORY_IDS[label - 1] for label in one.labels]
        np.testing.assert_allclose([a["score"] for a in written], one.scores, atol=1e-6)
        assert all(a["iscrowd"] == 0 and a["area"] == a["bbox"][2] * a["bbox"][3] for a in written)
    assert [a["id"] for a in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))

    lines = capsys.readouterr().out.splitlines()
    best = expected[0]
    assert lines[1].split()[0] == str(images[0]) and CLASSES[best.labels[0] - 1] in lines[1]
    assert [int(number) for number in lines[1].split()[-4:]] == best.boxes[0].round().astype(int).tolist()
    assert len(lines) == 2 + sum(len(one.boxes) for one in expected)
    for name, source in (("cat.jpg", images[0]), ("cat_2.jpg", images[1])):  # neither overwrites the other
        drawn, plain = read_image(tmp_path / "out" / name), read_image(source)
        assert drawn.shape == plain.shape and (np.abs(drawn.astype(int) - plain) > 60).any()


def test_a_detect_json_is_a_data_set_to_begin_with(images, weights, tmp_path, capsys):
    """Moved to its place it passes `check`, and pycocotools reads it; a folder's images are named relative to it."""
    from pycocotools.coco import COCO

    (tmp_path / "first" / "deep").mkdir()
    images[1].rename(tmp_path / "first" / "deep" / "dog.jpg")
    root = tmp_path / "data"
    (root / "annotations").mkdir(parents=True)
    (tmp_path / "first").rename(root / "train")
    target = root / "annotations" / "instances_train.json"
    assert run(*detect(weights, tmp_path, "--recursive", root / "train", "--json", target)) == 0
    assert [one["file_name"] for one in json.loads(target.read_text())["images"]] == ["cat.jpg", "deep/dog.jpg"]
    capsys.readouterr()
    assert run("check", "--data", root) == 0, capsys.readouterr().out
    coco = COCO(str(target))
    assert len(coco.anns) > 0 and all(one["score"] > THRESHOLD for one in coco.anns.values())
    assert coco.getAnnIds(areaRng=[1, 1e9], iscrowd=False)


def test_detections_go_to_label_studio_and_come_back(images, weights, tmp_path):
    tasks, found = tmp_path / "tasks.json", tmp_path / "found.json"
    assert run(*detect(weights, tmp_path, images[0].parent, "--label-studio", tasks, "--json", found)) == 0
    (task,) = json.loads(tasks.read_text())
    assert task["data"] == {"image": f"/data/local-files/?d={images[0].parent.name}/cat.jpg"}
    (prediction,) = task.pop("predictions")
    assert prediction["model_version"] == weights.name
    task["annotations"] = [{"result": prediction["result"]}]  # as if a person had accepted it
    tasks.write_text(json.dumps([task]))
    arguments = ("--from", "label-studio", "--images", images[0].parent, "--out", tmp_path / "data")
    assert run("convert", tasks, *arguments) == 0
    there = json.loads(found.read_text())
    back = json.loads((tmp_path / "data" / "annotations" / "instances_train.json").read_text())
    assert [(i["file_name"], i["width"], i["height"]) for i in back["images"]] == [("cat.jpg", 160, 120)]
    np.testing.assert_allclose(*([a["bbox"] for a in one["annotations"]] for one in (there, back)), atol=2e-3)
    names = [{c["id"]: c["name"] for c in one["categories"]} for one in (there, back)]
    assert [names[0][a["category_id"]] for a in there["annotations"]] == [
        names[1][a["category_id"]] for a in back["annotations"]
    ]


def test_an_image_without_objects_says_so(images, weights, tmp_path, capsys):
    assert run(*detect(weights, tmp_path, images[0], "--threshold", 0.999999, "--json", tmp_path / "f.json")) == 0
    assert f"{images[0]}  nothing found" in capsys.readouterr().out
    assert json.loads((tmp_path / "f.json").read_text())["annotations"] == []


def last_line(capsys):
    return capsys.readouterr().out.splitlines()[-1]


def test_the_last_line_of_detect_counts_and_advises(images, weights, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(*detect(weights, tmp_path, *images)) == 0
    objects = sum(len(Predictor.from_weights(weights)(path, threshold=THRESHOLD).labels) for path in images)
    assert last_line(capsys) == f"2 images written to {out}, {objects} objects"
    assert run(*detect(weights, tmp_path, images[0], "--threshold", 0.999999)) == 0
    assert last_line(capsys) == f"1 image written to {out}, no object found above 0.999999; try --threshold 0.6"
    (tmp_path / "bad.jpg").write_text("words")
    assert run(*detect(weights, tmp_path, *images, tmp_path / "bad.jpg")) == 1
    assert last_line(capsys) == f"2 of 3 images written to {out}, {objects} objects"


def test_thresholds_of_nought_and_one_and_other_options_reach_the_predictor(images, weights, tmp_path, capsys):
    shown = {}
    for name, options in {
        "everything": ("--threshold", 0),
        "few": ("--threshold", 0, "--max-detections", 3),
        "each class": ("--threshold", 0, "--no-class-agnostic"),
        "nothing": ("--threshold", 1),
    }.items():
        assert run(*detect(weights, tmp_path, images[0], *options)) == 0
        shown[name] = len(capsys.readouterr().out.splitlines()) - 2
    assert shown["few"] == 3 and shown["everything"] < shown["each class"] == 100
    assert shown["nothing"] == 1  # the line that says so


def test_folders_with_more_than_images(images, weights, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "first" / "b.heic").touch()
    (tmp_path / "first" / "._cat.jpg").write_text("macOS")
    (tmp_path / "first" / "deep").mkdir()
    images[1].rename(tmp_path / "first" / "deep" / "dog.jpg")
    assert run(*detect(weights, tmp_path, tmp_path / "first")) == 0
    captured = capfd.readouterr()
    assert captured.err.splitlines() == [
        f"odutils: {tmp_path / 'first'}: passed over: 1 sub-folder (name them, or ask for `recursive`), "
        "1 .heic (pip install pillow-heif)"
    ]
    assert run(*detect(weights, tmp_path, "--recursive", tmp_path / "first")) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat.jpg", "dog.jpg"]


def test_links_in_a_circle_are_told_and_the_rest_is_done(images, weights, tmp_path, complaint):
    loop = tmp_path / "first" / "loop.jpg"
    loop.symlink_to(loop)
    (tmp_path / "first" / "home").symlink_to(tmp_path)
    assert str(loop) in complaint(1, *detect(weights, tmp_path, images[0], loop.parent, "--recursive"))
    assert (tmp_path / "out" / "cat.jpg").is_file()


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_for_terminals(images, weights, tmp_path, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run(*detect(weights, tmp_path, *images)) == 0
    captured = capsys.readouterr()
    assert ("2/2" in captured.err) == terminal and "2/2" not in captured.out


def test_classes_of_ones_own_have_their_labels_as_ids(images, tmp_path):
    own = save_random(tmp_path / "own.safetensors", ("bolt", "nut"))
    assert run(*detect(own, tmp_path, images[0], "--json", tmp_path / "f.json")) == 0
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["categories"] == [{"id": 1, "name": "bolt"}, {"id": 2, "name": "nut"}]
    assert {a["category_id"] for a in content["annotations"]} <= {1, 2}


def test_other_kinds_are_drawn_as_jpeg_and_originals_are_never_overwritten(weights, tmp_path, draw_image, complaint):
    original = tmp_path / "in" / "a.webp"
    original.parent.mkdir()
    Image.fromarray(draw_image()).save(original)
    assert run(*detect(weights, tmp_path, original)) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.jpg"]
    drawn = (tmp_path / "out" / "a.jpg").read_bytes()
    assert "choose another folder" in complaint(2, *detect(weights, tmp_path, tmp_path / "out" / "a.jpg"))
    assert (tmp_path / "out" / "a.jpg").read_bytes() == drawn


def test_evaluate_gives_the_figures_of_evaluation(sample, weights, tmp_path, capsys):
    assert run("evaluate", "--data", sample, "--weights", weights, "--json", tmp_path / "scores.json") == 0
    predictor = Predictor.from_weights(weights)
    dataset = CocoDetections(sample, "val", classes=predictor.classes)
    results = predict(predictor, dataset)
    expected = score_by_source(dataset, results)
    assert json.loads((tmp_path / "scores.json").read_text()) == expected
    assert tuple(expected["all"]) == NAMES
    assert all(name in capsys.readouterr().out.split() for name in NAMES[:1])

    foreign = tmp_path / "results.json"
    foreign.write_text(json.dumps(results))
    arguments = (
        "evaluate",
        "--data",
        sample,
        "--split",
        "val",
        "--results",
        foreign,
        "--json",
        tmp_path / "again.json",
    )
    assert run(*arguments, "--weights", "nowhere") == 0  # no weights are needed
    assert json.loads((tmp_path / "again.json").read_text()) == expected


@pytest.fixture
def perfect(sample):
    """Results that are exactly what `sample` holds."""
    content = json.loads((sample / "annotations" / "instances_val.json").read_text())
    return [
        {key: a[key] for key in ("image_id", "category_id", "bbox")} | {"score": 0.9} for a in content["annotations"]
    ]


def test_intervals_are_told_and_written(sample, perfect, tmp_path, capsys):
    """Of perfect results the interval is a point; without half of the objects it is wide, and the same each time."""
    told = []
    for name, some in (("all", perfect), ("half", perfect[::2]), ("again", perfect[::2])):
        (tmp_path / f"{name}.json").write_text(json.dumps(some))
        results, out = tmp_path / f"{name}.json", tmp_path / f"{name}_scores.json"
        assert run("evaluate", "--data", sample, "--results", results, "--intervals", "--json", out) == 0
        told.append(capsys.readouterr().out.splitlines()[-1])
    assert told[0].startswith("all: AP 1.000 ± 0.000, AP50 1.000 ± 0.000 (95 %")
    written = [json.loads((tmp_path / f"{name}_scores.json").read_text()) for name in ("half", "again")]
    assert written[0] == written[1] and told[1] == told[2]
    (value, half), *_ = written[0]["intervals"]["all"]["AP"]
    assert value == pytest.approx(written[0]["all"]["AP"]) and 0.02 < half < 0.5


def test_perfect_results_have_an_ap_of_one(sample, perfect, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(perfect))
    assert run("evaluate", "--data", sample, "--results", tmp_path / "results.json") == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert table[1] == list(NAMES) and table[2][:4] == ["all", "1.000", "1.000", "1.000"]


def test_a_detect_json_is_scored_by_the_names_of_images_and_classes(sample, weights, tmp_path):
    found, scores = tmp_path / "found.json", tmp_path / "scores.json"
    names = sorted((sample / "val").iterdir(), reverse=True)  # numbered otherwise than in the data set
    arguments = detect(weights, tmp_path, *names, "--json", found, "--no-class-agnostic", "--threshold", 0.01)
    assert run(*arguments) == 0
    assert run("evaluate", "--data", sample, "--results", found, "--json", scores) == 0
    predictor = Predictor.from_weights(weights)
    dataset = CocoDetections(sample, "val")
    assert json.loads(scores.read_text()) == score_by_source(dataset, predict(predictor, dataset, batch_size=1))


def test_sample_and_check(tmp_path, capsys):
    root = tmp_path / "sample"
    assert run("sample", root, "--images", 3, 2, "--size", 64, "--seed", 5) == 0
    assert len(list((root / "train").iterdir())) == 3 and len(list((root / "val").iterdir())) == 2
    assert run("check", "--data", root) == 0
    assert capsys.readouterr().out.count("no problems found") == 2  # both splits
    os.remove(next((root / "val").iterdir()))
    assert run("check", "--data", root, "--split", "val") == 1
    assert "missing image" in capsys.readouterr().out
    assert run("check", "--data", root, "--split", "train") == 0


def write_video(path, frames=3):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(frames):
            image = np.full((64, 96, 3), 60 * index, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))


def test_video_writes_a_video_of_as_many_frames(weights, tmp_path, capsys):
    write_video(tmp_path / "video.mp4")
    target = tmp_path / "new" / "boxes.mp4"
    assert run("video", tmp_path / "video.mp4", "--out", target, "--weights", weights, "--threshold", THRESHOLD) == 0
    with av.open(str(target)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3
    assert "3 frames" in capsys.readouterr().out


def test_train_writes_weights_that_detect_can_use_and_goes_on(sample, images, tmp_path, capsys):
    arguments = ["train", "--data", sample, "--out", tmp_path / "run", "--size", 64, "--epochs", 1, "--batch-size", 4]
    arguments += ["--workers", 0, "--no-pretrained", "--device", "cpu"]
    assert run(*arguments) == 0
    assert "beginning" in capsys.readouterr().out
    assert run(*detect(tmp_path / "run" / "best.safetensors", tmp_path, images[0])) == 0
    assert load_weights(tmp_path / "run" / "best.safetensors")[1]["size"] == 64
    capsys.readouterr()
    assert run(*arguments) == 0
    assert f"going on from {tmp_path / 'run' / 'checkpoint.pt'}" in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_the_parser_understands(command, capsys, monkeypatch):
    assert run(*command.split(), "--help") == 0
    text = capsys.readouterr().out
    assert not re.search(r"\(default: [^)]*\)\s+\(default", text)
    example = text.split("python -m odutils")[-1].split()
    assert example[: len(command.split())] == command.split()
    from odutils.cli.options import make_parser

    assert make_parser().parse_args(example).command.__name__ == command.replace(" ", "_")


def test_training_without_options_follows_the_recipe():
    from odutils.cli.options import make_parser

    args, recipe = vars(make_parser().parse_args(["train", "--data", "x"])), vars(Recipe())
    assert {name: args[name] for name in args.keys() & recipe.keys() - {"size"}} == {
        name: recipe[name] for name in args.keys() & recipe.keys() - {"size"}
    }


def test_help_and_import_are_quick():
    """Imports nothing heavy: what counts is which modules come in, seconds depend on the machine."""
    script = "import sys, odutils, odutils.__main__; print([m for m in sys.argv[1:] if m in sys.modules])"
    heavy = "numpy torch torchvision cv2 PIL av timm fastai imgaug pycocotools matplotlib fastprogress tqdm".split()
    loaded = subprocess.run([sys.executable, "-c", script, *heavy], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
    shown = subprocess.run([sys.executable, "-m", "odutils", "--help"], capture_output=True, text=True, check=True)
    assert all(command.split()[0] in shown.stdout for command in COMMANDS) and not shown.stderr


# ---- bad input


@pytest.fixture(params=["text", "truncated", "empty"])
def broken(request, tmp_path, images):
    """A file named .jpg that is no image, or not a whole one."""
    whole = images[0].read_bytes()
    path = tmp_path / "bad" / f"{request.param}.jpg"
    path.parent.mkdir()
    path.write_bytes({"text": b"Not an image.\n", "truncated": whole[: len(whole) // 2], "empty": b""}[request.param])
    return path


def test_a_broken_image(broken, weights, tmp_path, complaint):
    assert str(broken) in complaint(1, *detect(weights, tmp_path, broken))


def test_a_broken_image_among_others(broken, images, weights, tmp_path, complaint):
    found = tmp_path / "found.json"
    assert str(broken) in complaint(1, *detect(weights, tmp_path, images[0], broken, images[1], "--json", found))
    names = [one["file_name"] for one in json.loads(found.read_text())["images"]]
    assert names == ["first/cat.jpg", "second/cat.jpg"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["cat.jpg", "cat_2.jpg"]


def test_a_missing_file(images, weights, tmp_path, complaint):
    assert "no such file" in complaint(2, *detect(weights, tmp_path, tmp_path / "no.jpg"))
    assert "no such file" in complaint(1, *detect(weights, tmp_path, tmp_path / "no.jpg", images[0]))
    assert (tmp_path / "out" / "cat.jpg").is_file()


def test_a_folder_without_images(weights, tmp_path, complaint):
    (tmp_path / "void").mkdir()
    (tmp_path / "void" / "notes.txt").write_text("nothing")
    assert "no images" in complaint(2, *detect(weights, tmp_path, tmp_path / "void"))


def test_a_video_without_images(weights, tmp_path, complaint):
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        sound.writeframes(bytes(8000))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    common = ("--out", tmp_path / "out.mp4", "--weights", weights)
    assert "no video stream" in complaint(1, "video", tmp_path / "sound.wav", *common)
    assert "cannot be read" in complaint(1, "video", tmp_path / "text.mp4", *common)
    assert "empty" in complaint(1, "video", tmp_path / "empty.mp4", *common)
    assert "no such file" in complaint(2, "video", tmp_path / "nothing.mp4", *common)
    assert not (tmp_path / "out.mp4").exists()


def test_weights_that_do_not_fit(weights, images, tmp_path, complaint):
    tensors, metadata = load_weights(weights)
    path = tmp_path / "bad.safetensors"

    def said(change):
        save_weights(path, tensors, metadata | change)
        return complaint(2, *detect(path, tmp_path, images[0]))

    assert "'article'" in said({"preset": "article"})
    assert "no preset 'yolo'" in said({"preset": "yolo"})
    assert "2 classes" in said({"classes": ["bolt", "nut"]})
    assert "no detector" in said({"classes": 80})
    assert "no detector" in said({"preset": ["pyramid"], "size": "big"})
    save_weights(path, tensors, {})
    assert "without metadata" in complaint(2, *detect(path, tmp_path, images[0]))


@pytest.mark.parametrize("keep", [0, 100, 200_000, None])
def test_broken_weights(keep, weights, images, tmp_path, complaint):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(b"not weights at all" if keep is None else weights.read_bytes()[:keep])
    assert str(path) in complaint(2, *detect(path, tmp_path, images[0]))
    assert "no such weights" in complaint(2, *detect(tmp_path / "none.safetensors", tmp_path, images[0]))


def test_weights_of_another_kind_to_train_from(weights, sample, tmp_path, complaint):
    common = ("--out", tmp_path / "run", "--workers", 0, "--device", "cpu", "--batch-size", 4, "--no-pretrained")
    line = complaint(2, "train", "--data", sample, "--weights", weights, "--preset", "article", *common)
    assert str(weights) in line and "'pyramid' cannot begin a training of 'article'" in line


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda content: "{", "line 1"),
        (lambda content: [1], "holds [1], not an object"),
        (lambda content: {"images": content["images"]}, "has no 'categories'"),
        (
            lambda content: content | {"annotations": [{"id": 1, "image_id": 1, "category_id": 1}]},
            "annotations[0] has no 'bbox'",
        ),
        (lambda content: content | {"annotations": [content["annotations"][0] | {"category_id": 99}]}, "99"),
        (lambda content: content | {"annotations": [content["annotations"][0] | {"bbox": [1, 2]}]}, "[1, 2], not four"),
        (lambda content: content | {"images": [content["images"][0] | {"file_name": 5}]}, "'file_name' is 5, not"),
    ],
)
def test_a_coco_file_with_errors(change, said, tmp_path, write_dataset, weights, complaint, capfd):
    root = write_dataset(tmp_path / "data", [[{"bbox": [10, 10, 30, 20], "category_id": 1}]], {1: "person"}, "val")
    path = root / "annotations" / "instances_val.json"
    changed = change(json.loads(path.read_text()))
    path.write_text(changed if isinstance(changed, str) else json.dumps(changed))
    line = complaint(2, "evaluate", "--data", root, "--weights", weights)
    assert str(path) in line and said in line
    assert run("check", "--data", root, "--split", "val") == 1
    captured = capfd.readouterr()
    assert "Traceback" not in captured.err
    assert re.search(r"val: (1 problem|([2-9]|\d\d+) problems) found\n", captured.out)


def test_data_sets_that_are_not_there(sample, tmp_path, complaint):
    for command in ("check", "evaluate", "train"):
        assert "no such folder" in complaint(2, command, "--data", tmp_path / "none")
        assert "not a data set" in complaint(2, command, "--data", tmp_path)
    for command in ("check", "evaluate"):
        line = complaint(2, command, "--data", sample, "--split", "vla")
        assert "no split 'vla'" in line and "train, val" in line


@pytest.mark.parametrize(
    "change, said",
    [
        ({"image_id": 999}, "image_id 999"),
        ({"image_id": [1]}, "image_id [1]"),
        ({"category_id": 12}, "category_id 12"),  # one of the ids that COCO dropped
        ({"bbox": [1, 2, float("nan"), 4]}, "bbox"),
        ({"bbox": [1, 2, 3]}, "bbox"),
        ({"bbox": [50, 50, -20, 4]}, "negative"),
        ({"score": float("nan")}, "score"),
        ({"score": "high"}, "score"),
        ({"score": None}, "score"),
    ],
)
def test_results_with_errors(change, said, sample, perfect, tmp_path, complaint):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([*perfect, perfect[0] | change]))
    line = complaint(2, "evaluate", "--data", sample, "--results", path)
    assert f"{path}: result {len(perfect)}: " in line and said in line


@pytest.mark.parametrize("text", ["", "[", "5", "{}", '[{"image_id": 1}]', "[5]", '{"annotations": []}', "\xff"])
def test_files_that_are_no_results(text, sample, tmp_path, complaint):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    assert str(path) in complaint(2, "evaluate", "--data", sample, "--results", path)
    assert "no such file" in complaint(2, "evaluate", "--data", sample, "--results", tmp_path / "none.json")


def test_detections_in_other_images(sample, images, weights, tmp_path, complaint):
    assert run(*detect(weights, tmp_path, *images, "--json", tmp_path / "found.json")) == 0
    line = complaint(2, "evaluate", "--data", sample, "--results", tmp_path / "found.json")
    assert "2 of its images" in line and "first/cat.jpg" in line


def test_a_detect_json_of_a_sub_folder_is_found_in_the_data_set(weights, tmp_path, write_dataset):
    root = write_dataset(tmp_path / "data", [[{"bbox": [5, 5, 30, 20], "category_id": 1}]], {1: "person"}, "val")
    file = root / "annotations" / "instances_val.json"
    (root / "val" / "deep").mkdir()
    (root / "val" / "0001.png").rename(root / "val" / "deep" / "0001.png")
    file.write_text(file.read_text().replace("0001.png", "deep/0001.png"))
    found = tmp_path / "found.json"
    assert run(*detect(weights, tmp_path, root / "val" / "deep", "--json", found)) == 0
    assert json.loads(found.read_text())["images"][0]["file_name"] == "0001.png"
    assert run("evaluate", "--data", root, "--results", found) == 0


def fail_with(number):
    def fail(self, *arguments, **options):
        raise OSError(number, os.strerror(number), str(self))

    return fail


def test_no_space_on_the_disk(images, sample, weights, tmp_path, complaint, monkeypatch):
    monkeypatch.setattr(Path, "write_bytes", fail_with(errno.ENOSPC))
    assert "No space left" in complaint(2, *detect(weights, tmp_path, images[0]))
    assert list((tmp_path / "out").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setattr(Path, "write_text", fail_with(errno.ENOSPC))
    line = complaint(2, *detect(weights, tmp_path, images[0], "--json", tmp_path / "found.json"))
    assert "No space left" in line and "found.json" in line
    assert not (tmp_path / "found.json").exists()
    assert "No space left" in complaint(2, "sample", tmp_path / "sample", "--images", 2, 1)


def test_no_permission_to_write(images, weights, sample, tmp_path, complaint, monkeypatch):
    (tmp_path / "file").touch()
    for arguments in (
        detect(weights, tmp_path, images[0], "--out", tmp_path / "file" / "out"),
        detect(weights, tmp_path, images[0], "--out", tmp_path / "file"),
        detect(weights, tmp_path, images[0], "--json", tmp_path / "file" / "found.json"),
        detect(weights, tmp_path, images[0], "--json", tmp_path),
        detect(weights, tmp_path, images[0], "--label-studio", tmp_path / "file" / "tasks.json"),
        ("evaluate", "--data", sample, "--weights", weights, "--json", tmp_path / "file" / "scores.json"),
        ("sample", tmp_path / "file" / "sample", "--images", 2, 1),
        ("download", "coco", "--root", tmp_path / "file" / "coco"),
    ):
        assert complaint(2, *arguments).startswith("odutils: cannot write ")
    monkeypatch.setattr(Path, "touch", fail_with(errno.EACCES))
    line = complaint(2, *detect(weights, tmp_path, images[0]))
    assert "Permission denied" in line and "cat.jpg" in line


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "fly",
        "detect",
        "detect a.jpg --threshold 1.5",
        "detect a.jpg --threshold nan",
        "detect a.jpg --iou high",
        "video a.mp4 --batch-size 0",
        "train --data d --epochs -1",
        "train --data d --preset yolo",
        "train --data d --patience 0",
        "convert labels --from coco --images i --out o",
        "convert labels --from yolo --images i",
        "convert labels --from yolo --images i --out o",
        "split --data d --out o --parts train=0.6 val",
        "split --data d --out o --parts train=1.6 val=0.2",
        "evaluate",
        "download coco --splits test2017",
        "download weights short --out w.pth",
        "sample s --images 1 2 3",
        "sample s --size 8",
    ],
)
def test_wrong_arguments(arguments, tmp_path, complaint, monkeypatch):
    monkeypatch.chdir(tmp_path)
    complaint(2, *arguments.split())
    assert list(tmp_path.iterdir()) == []


def test_a_device_that_is_not_there(images, weights, tmp_path, complaint):
    for device in ("warp", "cuda:99", "meta"):
        assert device in complaint(2, *detect(weights, tmp_path, images[0], "--device", device))


def test_the_article_has_one_size(sample, complaint):
    assert "224" in complaint(2, "train", "--data", sample, "--preset", "article", "--size", 256)


def test_ctrl_c_says_how_to_go_on(sample, tmp_path, complaint, monkeypatch):
    def stop(*arguments, **options):
        (tmp_path / "checkpoint.pt").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train", stop)
    line = complaint(130, "train", "--data", sample, "--out", tmp_path)
    assert f"the same command goes on from {tmp_path / 'checkpoint.pt'}" in line
    monkeypatch.setattr(Predictor, "from_weights", stop)
    assert complaint(130, "detect", sample / "val", "--out", tmp_path / "out") == "odutils: stopped"

    def stop_while_loading(*arguments, **options):
        raise ImportError("initialization failed") from KeyboardInterrupt()

    monkeypatch.setattr(Predictor, "from_weights", stop_while_loading)
    assert complaint(130, "detect", sample / "val", "--out", tmp_path / "out") == "odutils: stopped"


def test_a_package_that_is_missing(sample, tmp_path, complaint, monkeypatch):
    monkeypatch.setitem(sys.modules, "imgaug.augmenters", None)
    line = complaint(2, "train", "--data", sample, "--out", tmp_path, "--device", "cpu", "--no-pretrained")
    assert "imgaug" in line and f'pip install -e "{files.PACKAGE.parent}[train]"' in line
    monkeypatch.setattr(files, "IN_CHECKOUT", False)  # as from a wheel: odutils is in no package index
    line = complaint(2, "train", "--data", sample, "--out", tmp_path, "--device", "cpu", "--no-pretrained")
    assert "pip install imgaug==0.4.0 " in line and "odutils" not in line.partition("pip install")[2]


@pytest.mark.parametrize("arguments", [("--traceback", "detect", "none.jpg"), ("detect", "none.jpg", "--traceback")])
def test_a_traceback_on_request(arguments, capsys):
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):" and "no such file" in lines[-1]


def test_an_error_in_a_loaders_process_is_one_line(tmp_path, write_dataset, complaint):
    root = write_dataset(tmp_path / "data", [[{"bbox": [10, 10, 30, 20], "category_id": 1}]] * 4, {1: "person"})
    write_dataset(tmp_path / "other", [[]], {1: "person"}, "val")
    (tmp_path / "other" / "val").rename(root / "val")
    (tmp_path / "other" / "annotations" / "instances_val.json").rename(root / "annotations" / "instances_val.json")
    (root / "train" / "0002.png").write_text("broken")
    arguments = ("--out", tmp_path / "run", "--size", 64, "--batch-size", 4, "--workers", 1, "--device", "cpu")
    line = complaint(1, "train", "--data", root, "--no-pretrained", *arguments)
    assert line.startswith(f"odutils: {root / 'train' / '0002.png'}: cannot be read")
