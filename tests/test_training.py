"""Protects the training as a whole: it learns; killed at any moment and started again it ends as if nothing had
happened; and several processes do what one would with the joint batch."""

import csv
import os
import random
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odutils import presets, reports, training
from odutils.__main__ import main
from odutils.anchors import pyramid_grid
from odutils.callbacks import Callback
from odutils.datasets import CocoDetections, make_loader
from odutils.errors import InputError
from odutils.evaluation import score_by_source, to_results
from odutils.images import fit
from odutils.inference import EVALUATED, select, to_detections
from odutils.losses import DetectionLoss
from odutils.model import Detector, flatten_maps
from odutils.presets import build, load_detector
from odutils.processes import Share
from odutils.recipe import Recipe
from odutils.reports import CocoMetrics
from odutils.resume import read_checkpoint
from odutils.sample.make import make_sample
from odutils.settings import Settings
from odutils.training import make_learner, make_optimiser, miniai, train

TESTS = Path(__file__).parent
SMALL = dict(size=64, batch_size=4, warm_up=2)


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("sample") / "s", images=(13, 3), size=64, objects=(1, 3))


def small_training(sample, out, epochs=2, every=2, device="cpu", **recipe):
    recipe = Recipe(epochs=epochs, **{**SMALL, **recipe})
    return train(sample, out, recipe, workers=0, device=device, checkpoint_every=every, progress=False)


def rows_of(out: Path) -> list[dict]:
    """losses.csv without the column that the clock decides."""
    with open(out / "losses.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_result(first: Path, second: Path):
    assert rows_of(first) == rows_of(second)
    assert (first / "best.safetensors").read_bytes() == (second / "best.safetensors").read_bytes()


@pytest.fixture(scope="module")
def unbroken(sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken")
    small_training(sample, out)
    return out


# ---- what a training leaves


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


def test_other_settings_are_refused(sample, unbroken):
    for changed in (dict(lr=0.5), dict(epochs=3), dict(seed=1)):
        with pytest.raises(InputError, match=f"with other {next(iter(changed))}"):
            small_training(sample, unbroken, **changed)


def test_a_setting_that_an_older_checkpoint_lacks_is_accepted(unbroken):
    settings = torch.load(unbroken / "checkpoint.pt", weights_only=True)["settings"]
    assert {"preset", "lr", "classes", "images", "processes"} <= settings.keys()
    read_checkpoint(unbroken / "checkpoint.pt", {**settings, "new": 1}, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_named(sample, unbroken, tmp_path):
    whole = (unbroken / "checkpoint.pt").read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2], (unbroken / "best.safetensors").read_bytes()):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(InputError, match="checkpoint.pt: not a checkpoint"):
            read_checkpoint(tmp_path / "checkpoint.pt", {}, torch.device("cpu"))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        read_checkpoint(tmp_path / "checkpoint.pt", {}, torch.device("cpu"))


@pytest.mark.parametrize(
    "wrong, words",
    [
        (dict(size=100), "multiple of 32"),
        (dict(preset="article", size=256), "224 px"),
        (dict(epochs=0), "epochs 0"),
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


# ---- interruptions


class TinyBackbone(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 8, stride=8), nn.BatchNorm2d(4), nn.ReLU())


class TinyHead(nn.Module):
    """As small as a head can be that has batch norm and dropout."""

    def __init__(self, classes: int):
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2))
        self.class_output, self.box_output = nn.Conv2d(8, classes, 1), nn.Conv2d(8, 4, 1)

    def forward(self, features):
        features = self.trunk(features)
        maps = [F.avg_pool2d(features, 2**level) for level in range(4)]  # strides 8 to 64
        return flatten_maps([self.class_output(m) for m in maps], 1), flatten_maps(
            [self.box_output(m) for m in maps], 1
        )


def tiny(classes, pretrained):
    settings = Settings(preset="pyramid", classes=classes, size=64, squash=False)
    return Detector(TinyBackbone(), TinyHead(len(classes)), pyramid_grid, [127.0] * 3, [128.0] * 3, settings)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Trainings of milliseconds: a network of a few hundred weights, and no plot."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "pyramid", tiny)
        patch.setattr(reports, "plot_losses", lambda *_: None)
        yield patch


@pytest.fixture(scope="module")
def quick_unbroken(quick, sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("quick")
    small_training(sample, out)
    return out


EVENTS = "before_fit before_epoch before_batch predict after_predict get_loss after_loss backward after_backward step"
EVENTS = f"{EVENTS} after_step zero_grad after_batch cleanup_batch after_epoch cleanup_epoch after_fit cleanup_fit"


class Interrupt(Callback):
    """Ctrl-C at an event, once in each epoch's training, not in its first batch, and once in its validation."""

    def __init__(self, event: str, order: int, reached: set):
        self.order, self.reached = order, reached
        self.of_a_batch = not event.endswith(("epoch", "fit"))
        setattr(self, event, self.stop)

    def stop(self, learn):
        phase = (getattr(learn, "epoch", None), learn.training)
        begins = self.of_a_batch and learn.training and learn.iter == 0
        if phase not in self.reached and not begins:
            self.reached.add(phase)
            raise KeyboardInterrupt


def assert_same_memory(first, second):
    """Two checkpoints, or parts of them, but for the time that they took."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first.keys() - {"seconds"}:
            assert_same_memory(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_memory(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("order", [-100, 100])
@pytest.mark.parametrize("event", EVENTS.split())
def test_interrupted_in_any_event_it_ends_like_the_unbroken_run(
    quick, quick_unbroken, sample, tmp_path, monkeypatch, event, order
):
    reached, original = set(), training.make_learner
    monkeypatch.setattr(
        training,
        "make_learner",
        lambda *most: original(*most[:-1], [*most[-1], Interrupt(event, order, reached)]),
    )
    for start in range(6):
        try:
            small_training(sample, tmp_path)
            break
        except KeyboardInterrupt:
            continue
    assert start == len(reached) >= 1
    assert_same_result(tmp_path, quick_unbroken)
    memories = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, quick_unbroken)]
    assert_same_memory(*memories)


def test_killed_at_random_moments_the_command_ends_like_an_unbroken_run(sample, tmp_path):
    """Real processes and SIGKILL; the killed runs have a process that loads images, the unbroken one does without."""
    options = ["train", "--data", str(sample), "--size", "64", "--epochs", "6", "--batch-size", "4", "--device", "cpu"]
    options += ["--checkpoint-every", "2", "--seed", "3"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [sys.executable, "-m", "odutils", *options, "--out", str(broken), "--workers", "1"]
    chance, checkpoint = random.Random(5), broken / "checkpoint.pt"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=TESTS.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 100
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 6
    assert main([*options, "--out", str(broken), "--workers", "1"]) == 0
    assert main([*options, "--out", str(whole), "--workers", "0"]) == 0
    assert len(rows_of(whole)) == 6
    assert_same_result(broken, whole)


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


# ---- several processes


class Still(Callback):
    """Batch norm in eval mode, so that an image's answer does not depend on the others of its batch."""

    def before_epoch(self, learn):
        for module in learn.detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class Gradients(Callback):
    order = 18  # after Share (15), before ClipGradients (20)

    def after_backward(self, learn):
        self.gradients = {name: p.grad.clone() for name, p in learn.detector.named_parameters() if p.grad is not None}

    def after_batch(self, learn):
        if learn.training:
            self.loss = learn.loss.detach()


def joint_batch():
    """Six images; the first half, by the sampler's turns, has many objects and the other few."""
    chance = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=chance)
    corner = torch.rand(6, 5, 2, generator=chance) * 0.6
    boxes = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(6, 5, 2, generator=chance)], dim=-1)  # (6, 5, 4)
    labels = torch.randint(1, 5, (6, 5), generator=chance)
    labels[1::2, 1:] = 0
    labels[3] = 0
    known = torch.ones(6, 4, dtype=torch.bool)
    known[2, 1] = False
    return images, boxes * (labels > 0)[..., None], labels, known


def gradient(kind: str, part: slice, *extra) -> tuple[dict, float]:
    """The gradient and the loss of `part` of the joint batch. Three batches: every process must stay in step."""
    torch.manual_seed(0)
    detector, watch = build("pyramid", ("a", "b", "c", "d")), Gradients()
    batch = [tensor[part] for tensor in joint_batch()]
    dls = SimpleNamespace(train=[batch], valid=[batch])
    loss, recipe = DetectionLoss(detector.grid(64, 64), kind), Recipe(epochs=1, pretrained=False)
    make_learner(detector, dls, recipe, loss, "cpu", [Still(), watch, *extra]).fit(1)
    return watch.gradients, float(watch.loss)


def work(sample: str, out: str):
    """What each of two processes does."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    out, rank = Path(out), int(os.environ["RANK"])
    # First of all: what accelerate was told once, it keeps. Two validations, of the first process alone.
    small_training(Path(sample), out / f"training{rank}", device=None)
    accelerator = Accelerator(cpu=True)
    shared = {kind: gradient(kind, slice(rank, None, 2), Share(accelerator)) for kind in ("quality", "article")}
    if accelerator.is_main_process:
        torch.save(shared, out / "shared.pt")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes(sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    (out / "training1").mkdir()  # not shared, so that it shows who writes
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    both["CUDA_VISIBLE_DEVICES"] = ""  # as where there is no card, so that the default device is the CPU
    call = f"import test_training; test_training.work({str(sample)!r}, {str(out)!r})"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    processes = []
    for rank in ("0", "1"):
        environment = {**os.environ, **both, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": paths}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen([sys.executable, "-c", call], env=environment, **pipes))
    try:
        for process in processes:
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
    return out


@pytest.mark.parametrize("kind", ["quality", "article"])
def test_two_processes_have_the_gradient_of_the_joint_batch(two_processes, kind):
    shared, shared_loss = torch.load(two_processes / "shared.pt", weights_only=True)[kind]
    alone, loss = gradient(kind, slice(None))
    assert shared_loss == pytest.approx(loss, rel=1e-5)
    assert shared.keys() == alone.keys()
    longest = max(float(g.norm()) for g in alone.values())
    for name, expected in alone.items():
        assert torch.allclose(shared[name], expected, rtol=1e-3, atol=1e-5 * longest), name


def test_two_processes_train_and_only_the_first_writes(two_processes, sample):
    first = two_processes / "training0"
    assert len(rows_of(first)) == 2 and load_detector(first / "best.safetensors")
    assert not list((two_processes / "training1").iterdir())
    settings = torch.load(first / "checkpoint.pt", weights_only=True)["settings"]
    assert settings["processes"] == 2
    with pytest.raises(InputError, match="processes 2, now 1"):
        small_training(sample, first)


def test_the_recipe_decides_what_the_examples_look_like(sample, tmp_path):
    losses = set()
    for name, recipe in {"usual": {}, "mosaic": {"mosaic": 0.7}, "whole": {"crop": False}}.items():
        small_training(sample, tmp_path / name, epochs=1, **recipe)
        losses.add(float(rows_of(tmp_path / name)[0]["train_loss"]))
    assert len(losses) == 3 and all(0 < loss < 100 for loss in losses)


def test_a_share_of_mosaics_above_one_is_refused():
    with pytest.raises(InputError, match="mosaic 1.5"):
        Recipe(mosaic=1.5).check()


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(InputError, match="shared evenly by 3"):
        Recipe(batch_size=4).check(processes=3)
