"""What the tests of trainings and of commands share: a command run in this process; small real trainings, and the same
with a network of a few hundred weights."""

import csv
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import nn

from odutils import presets, reports, training
from odutils.__main__ import main
from odutils.anchors import pyramid_grid
from odutils.callbacks import Callback
from odutils.losses import DetectionLoss
from odutils.model import Detector, flatten_maps
from odutils.presets import build
from odutils.recipe import Recipe
from odutils.settings import Settings
from odutils.training import make_learner, train

CLASSES = ("cat", "dog", "cup")
SMALL = dict(size=64, batch_size=4, warm_up=2)


def run(*arguments):
    """The exit code of `python -m odutils …`, run in this process."""
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def small_training(sample, out, epochs=2, every=2, device="cpu", weights=None, **recipe):
    recipe = Recipe(epochs=epochs, **{**SMALL, **recipe})
    options = dict(weights=weights, workers=0, device=device, checkpoint_every=every, progress=False)
    return train(sample, out, recipe, **options)


def command(sample, out, *options) -> list[str]:
    arguments = ["train", "--data", sample, "--out", out, "--size", 64, "--batch-size", 4, "--workers", 0, *options]
    return [str(argument) for argument in arguments]


def rows_of(out: Path) -> list[dict]:
    """losses.csv without the column that the clock decides."""
    with open(out / "losses.csv", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def assert_same_result(first: Path, second: Path):
    assert rows_of(first) == rows_of(second)
    assert (first / "best.safetensors").read_bytes() == (second / "best.safetensors").read_bytes()


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


def make_quick(patch):
    """Trainings of milliseconds from now on: the tiny network, and no plot."""
    patch.setitem(presets.PRESETS, "pyramid", tiny)
    patch.setattr(reports, "plot_losses", lambda *_: None)


def attach(patch, callback: Callback, without: type | tuple = ()):
    """Every learner that `odutils.training.train` makes from now on has this callback, and none of that type."""
    original = training.make_learner

    def make(*most):
        learn = original(*most[:-1], [*most[-1], callback])
        learn.cbs = [one for one in learn.cbs if not isinstance(one, without)]
        return learn

    patch.setattr(training, "make_learner", make)


def random_batch(seed: int, count: int = 2):
    """Images (N, 3, 64, 64) with one object each."""
    chance = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=chance)
    corner = torch.rand(count, 1, 2, generator=chance) * 0.4
    boxes = torch.cat([corner, corner + 0.5], dim=-1)  # (N, 1, 4)
    labels = torch.randint(1, 4, (count, 1), generator=chance)
    return images, boxes, labels, torch.ones(count, 3, dtype=torch.bool)


def learner(*extra, steps: int = 3, valid: int = 1, **recipe):
    """A Learner on random batches, whose callbacks are `extra` and the usual ones."""
    torch.manual_seed(0)
    detector = build("pyramid", CLASSES)
    dls = SimpleNamespace(train=[random_batch(i) for i in range(steps)], valid=[random_batch(99)] * valid)
    return make_learner(detector, dls, Recipe(size=64, **recipe), DetectionLoss(detector.grid(64, 64)), "cpu", extra)


def find(learn, kind):
    return next(callback for callback in learn.cbs if isinstance(callback, kind))


def run_train(capsys, *arguments) -> tuple[int, list[str], list[str]]:
    """The exit code of `python -m odutils train …`, its lines on stdout and those on stderr."""
    code = main(command(*arguments))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err.splitlines()
