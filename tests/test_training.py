"""Protects the training as a whole: it learns, leaves its results and nothing else, says what it does, and refuses what
cannot work before it begins."""

import json
import math
import shutil
import subprocess
import sys
import warnings
from contextlib import ExitStack
from types import ModuleType, SimpleNamespace

import pytest
import torch
from trainings import rows_of, small_training

from odutils import training
from odutils.callbacks import Callback
from odutils.datasets import CocoDetections, make_loader
from odutils.errors import InputError
from odutils.evaluation import score_by_source, to_results
from odutils.images import fit
from odutils.inference import to_detections
from odutils.losses import DetectionLoss
from odutils.presets import build, load_detector
from odutils.recipe import Recipe
from odutils.reports import CocoMetrics
from odutils.selection import EVALUATED, select
from odutils.training import make_learner, make_optimiser, miniai
from odutils.weights import load_weights


@pytest.fixture(scope="module")
def unbroken(sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    small_training(sample, out)
    return out


def test_a_training_leaves_its_results_and_nothing_else(unbroken):
    files = {path.name for path in unbroken.iterdir()}
    assert files == {".lock", "best.safetensors", "checkpoint.pt", "losses.csv", "losses.png"}
    rows = rows_of(unbroken)
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"train_loss", "valid_loss", "AP", "AP50"} <= rows[0].keys()
    assert all(float(row["train_loss"]) > 0 for row in rows)
    assert load_detector(unbroken / "best.safetensors").settings.size == 64


def test_a_complete_training_does_nothing_when_started_again(sample, unbroken):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in unbroken.iterdir()}
    assert small_training(sample, unbroken) == unbroken / "best.safetensors"
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in unbroken.iterdir()} == before


def test_a_training_that_stops_early_keeps_its_schedule_and_can_go_on(sample, unbroken, tmp_path):
    small_training(sample, tmp_path / "out", stop_after=1)
    assert rows_of(tmp_path / "out") == rows_of(unbroken)[:1]
    small_training(sample, tmp_path / "out")
    assert rows_of(tmp_path / "out") == rows_of(unbroken)


def test_the_recipe_decides_what_the_examples_look_like(sample, tmp_path):
    losses = set()
    for name, recipe in {"usual": {}, "mosaic": {"mosaic": 0.7}, "whole": {"crop": False}}.items():
        small_training(sample, tmp_path / name, epochs=1, **recipe)
        losses.add(float(rows_of(tmp_path / name)[0]["train_loss"]))
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)


def test_the_command_says_what_was_chosen(quick, sample, tmp_path, run):
    code, lines, _ = run(sample, tmp_path, "--epochs", 1, "--device", "cpu")
    assert code == 0
    objects = sum(len(of_image) for of_image in CocoDetections(sample, "train").labels)
    assert f"13 images with {objects} objects, to validate on: 3 images" in lines[1]
    assert lines[2].startswith("classes (80): person, bicycle, car, motorcycle, airplane, …")
    assert lines[3] == "computed on cpu; images loaded by this process"
    assert max(map(len, lines[4:-2])) <= 80 and "train_loss" in lines[4]


def test_without_objects_to_validate_on_the_loss_decides(quick, sample, tmp_path, run):
    data = shutil.copytree(sample, tmp_path / "data")
    file = data / "annotations" / "instances_val.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"annotations": []}))
    code, lines, _ = run(data, tmp_path / "out", "--epochs", 3, "--device", "cpu")
    assert code == 0 and all("–" in line and "-1" not in line for line in lines[5:8])
    rows = rows_of(tmp_path / "out")
    assert {row["AP"] for row in rows} == {row["AP50"] for row in rows} == {""}
    lowest = min(rows, key=lambda row: float(row["valid_loss"]))
    assert load_weights(tmp_path / "out" / "best.safetensors")[1]["epoch"] == int(lowest["epoch"])


# ---- what cannot work


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(lr=0.0), "lr 0.0"),
        (dict(lr=math.nan), "lr nan"),
        (dict(lr=math.inf), "lr inf"),
        (dict(backbone_lr=-1e-4), "backbone_lr -0.0001: must be 0 or more"),
        (dict(weight_decay=math.nan), "weight_decay nan"),
        (dict(warm_up=-1), "warm_up -1"),
        (dict(balance=1.1), "balance 1.1: must be from 0 to 1"),
        (dict(mosaic=1.5), "mosaic 1.5"),
        (dict(ema=2.0), "ema 2.0"),
        (dict(size=100), "multiple of 32"),
        (dict(preset="article", size=256), "224 px"),
        (dict(finest_stride=2), "finest_stride 2: choose 8 or 4"),
        (dict(finest_stride=4.0), "finest_stride 4.0: choose"),
        (dict(preset="article", size=224, finest_stride=4), "'article' has no feature pyramid"),
        (dict(epochs=0), "epochs 0"),
        (dict(epochs=3, stop_after=4), "stop_after 4: choose from 1 to 3"),
        (dict(epochs=3, stop_after=0), "stop_after 0"),
        (dict(batch_size=0), "batch size 0"),
        (dict(batch_size=100), "do not fill a batch"),
        (dict(seed=-1), "seed -1"),
        (dict(preset="none"), "no preset 'none'"),
    ],
)
def test_recipes_that_cannot_work_are_refused(sample, tmp_path, wrong, words):
    with pytest.raises(InputError, match=words):
        small_training(sample, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_ranges_have_their_ends():
    Recipe(backbone_lr=0.0, weight_decay=0.0, warm_up=0, balance=0.0, mosaic=0.0, ema=0.0).check()
    Recipe(balance=1.0, mosaic=1.0, ema=1.0).check()


def test_both_ends_of_a_share_and_a_still_backbone_are_accepted(quick, sample, tmp_path, run):
    for mosaic in (0, 1):
        out = tmp_path / str(mosaic)
        assert run(sample, out, "--epochs", 1, "--mosaic", mosaic, "--backbone-lr", 0, "--device", "cpu")[0] == 0
    assert run(sample, tmp_path / "out", "--lr", 0)[0] == 2


def test_a_device_without_numbers_is_refused(sample, tmp_path, run):
    code, _, (line,) = run(sample, tmp_path / "out", "--device", "meta")
    assert code == 2 and "device 'meta' cannot be used" in line


@pytest.mark.parametrize("there", ["file", "in use", "empty"])
def test_what_cannot_work_is_said_at_the_start(quick, sample, tmp_path, run, there, monkeypatch, write_dataset):
    monkeypatch.setattr(training, "make_learner", lambda *_: pytest.fail("it has begun"))
    out, data = tmp_path / "out", sample
    with ExitStack() as stack:
        if there == "file":
            out.write_text("mine")
        if there == "in use":
            holder = (
                "import sys; from odutils.files import locked\nwith locked(sys.argv[1]): print(flush=True), input()"
            )
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            other = stack.enter_context(subprocess.Popen([sys.executable, "-c", holder, str(out)], **pipes))
            stack.callback(other.kill)
            other.stdout.readline()
        if there == "empty":
            data = write_dataset(tmp_path / "data", [[]] * 4, {1: "cat"})
            write_dataset(tmp_path / "data", [[]], {1: "cat"}, "val")
        code, _, (line,) = run(data, out, "--device", "cpu")
    assert code == 2
    assert {
        "file": "a file, not a folder",
        "in use": "another process",
        "empty": "no object to learn from in the 4 images",
    }[there] in line


# ---- learning


@pytest.fixture(scope="module")
def overfitted(sample):
    """A `pyramid` that has seen the three validation images fifty times, with what its last validation reported."""
    torch.manual_seed(0)
    images = CocoDetections(sample, "val", 64)
    detector = build("pyramid", images.classes, pretrained=True)
    batches = list(make_loader(images, 3, workers=0))
    losses = []

    class Losses(Callback):
        def after_batch(self, learn):
            losses.append(float(learn.loss.detach()))

    dls = SimpleNamespace(train=batches * 50, valid=batches)
    recipe = Recipe(epochs=1, warm_up=5, lr=3e-3, ema=0.5)
    loss = DetectionLoss(detector.grid(64, 64))
    learn = make_learner(detector, dls, recipe, loss, "cpu", [Losses(), CocoMetrics(images)])
    learn.fit(1)
    state = next(callback for callback in learn.cbs if type(callback).__name__ == "EMA").state
    detector.load_state_dict(state)
    return detector.eval(), images, losses, learn


def test_a_few_images_can_be_learned_by_heart(overfitted):
    _, _, losses, _ = overfitted
    assert losses[49] < losses[0] / 2
    assert losses[50] < losses[0] / 2  # validation, with the averaged weights


def test_coco_metrics_are_those_computed_by_hand(overfitted):
    detector, images, _, learn = overfitted
    results = []
    for index in range(len(images)):
        image = images.image(index)
        square, placement = fit(image, 64)
        with torch.no_grad():
            logits, codes = detector(torch.from_numpy(square.copy()).permute(2, 0, 1)[None])
        found = select(logits[0], codes[0], detector.grid(64, 64), EVALUATED, class_agnostic=False)
        results += to_results(images, index, to_detections(*found, placement, image.shape))
    by_hand = score_by_source(images, results)
    assert by_hand["all"]["AP50"] > 0.1
    assert learn.scores["by_class"] == pytest.approx(by_hand["by_class"], abs=1e-3)
    for source, metrics in {"all": by_hand["all"], **by_hand["by_source"]}.items():
        reported = learn.scores["all"] if source == "all" else learn.scores["by_source"][source]
        assert reported == pytest.approx(metrics, abs=1e-3)
    assert learn.row["AP50"] == learn.scores["all"]["AP50"]


def test_the_optimiser_has_four_groups():
    detector, recipe = build("pyramid", ("cat", "dog")), Recipe(lr=0.1, backbone_lr=0.01, weight_decay=0.5)
    groups = make_optimiser(detector, recipe).param_groups
    names = {id(parameter): name for name, parameter in detector.named_parameters()}
    assert sorted(names[id(p)] for group in groups for p in group["params"]) == sorted(names.values())
    for group in groups:
        for parameter in group["params"]:
            is_backbone = names[id(parameter)].startswith("backbone.")
            assert group["lr"] == group["base_lr"] == (0.01 if is_backbone else 0.1)
            assert group["weight_decay"] == (0.5 if parameter.ndim > 1 else 0.0)
    assert len({(group["lr"], group["weight_decay"]) for group in groups}) == len(groups) == 4


def test_the_courses_own_miniai_is_preferred_where_it_has_a_learner(monkeypatch):
    package, learner = ModuleType("miniai"), ModuleType("miniai.learner")
    monkeypatch.setitem(sys.modules, "miniai", package)
    assert miniai().__name__ == "miniminiai"  # PyPI's package of that name has no learner
    package.learner = learner
    monkeypatch.setitem(sys.modules, "miniai.learner", learner)
    assert miniai() is learner


def test_what_miniai_imports_warns_of_nothing(monkeypatch, tmp_path):
    miniai()  # the real one is in sys.modules, so that monkeypatch puts it back
    (tmp_path / "miniminiai.py").write_text("import warnings; warnings.warn('torch.jit is old', FutureWarning)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "miniminiai", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert miniai().__file__ == str(tmp_path / "miniminiai.py")
