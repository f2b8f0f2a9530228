"""What is the same for all entrants: images, minutes or epochs, order, and how a run counts them."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from depthwise import use_quick_gradients
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from odutils import callbacks
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections, make_loader
from odutils.precision import MixedPrecision
from odutils.recipe import Recipe
from odutils.training import miniai

SIZE = 224  # px of every entrant's square input: the article's anchors are made for it
MEAN, STD = [127.0] * 3, [128.0] * 3  # of EfficientNet-Lite0's pixels
# Optimiser, rates and batch of all entrants but the article's. By minutes: half the usual batch, for more steps in few
# minutes, and the rates lowered to fit. By epochs: a batch of 32, and the rates raised to fit.
BY_MINUTES = Recipe(size=SIZE, batch_size=8, lr=1e-3, backbone_lr=1.4e-4)
BY_EPOCHS = Recipe(size=SIZE, batch_size=32, lr=2e-3, backbone_lr=2.8e-4)
EPOCH = 9_880  # images, whatever the folder holds: a few more images in it must not mean more steps


class Course(NamedTuple):
    """What is the same for all entrants: the images, and how long they are trained."""

    data: Path
    split: str
    seed: int
    article: Path  # the file with the article's code
    minutes: float | None = None  # of CPU time
    epochs: float | None = None  # of EPOCH images, instead of minutes
    device: str = "cpu"
    bfloat16: bool = False  # what the network computes in while it trains; without it our own do so on a GPU only
    workers: int = 0  # processes that load images

    @property
    def recipe(self) -> Recipe:
        return BY_MINUTES if self.epochs is None else BY_EPOCHS

    def budget(self, batch_size: int) -> "Budget":
        if self.epochs is None:
            return Budget(seconds=self.minutes * 60)
        return Budget(steps=round(self.epochs * EPOCH / batch_size))

    def loader(self, dataset, batch_size: int, sampler: "Endless") -> DataLoader:
        return make_loader(dataset, batch_size, sampler, self.workers, pin_memory=self.device != "cpu")

    def precision(self, network: nn.Module) -> MixedPrecision:
        """The callback that lets the network compute in bfloat16, if that was asked for."""
        if self.bfloat16 and self.device == "cpu":
            use_quick_gradients(network)
        return MixedPrecision(torch.bfloat16 if self.bfloat16 else None)

    def image(self) -> Tensor:
        """What our detectors take for one image, for counting."""
        return torch.zeros(1, 3, SIZE, SIZE, dtype=torch.uint8, device=self.device)


class Run(NamedTuple):
    """An entrant, ready to start."""

    learn: object  # miniai's Learner; `learn.detector` is the network
    predictor: object  # has `batch(images, threshold, class_agnostic)`
    sampler: "Endless"
    batch_size: int
    image: Tensor  # what the network takes for one image: for counting
    precision: str = "float32"  # of the network in training


class Endless(Sampler):
    """(epoch, index) without end: every image once an epoch, in an order that follows from the seed and the epoch.

    start: the number of examples that were seen before an interruption.
    """

    process = 0

    def __init__(self, images: int, seed: int):
        self.images, self.seed, self.epoch, self.start = images, seed, 0, 0

    def __len__(self) -> int:
        return 2**31

    def __iter__(self) -> Iterator[tuple[int, int]]:
        first, seen = divmod(self.start, self.images)
        for epoch in count(first):
            order = np.random.default_rng([self.seed, epoch]).permutation(self.images)
            yield from ((epoch, int(index)) for index in order[seen:])
            seen = 0


class Budget(callbacks.Callback):
    """Ends the training when its CPU time, loading included, or its steps are used up, and knows what it took."""

    order = 30  # before the checkpoint is written
    remembers = ("cpu", "wall")

    def __init__(self, seconds: float = math.inf, steps: float = math.inf):
        self.seconds, self.steps, self.cpu, self.wall = seconds, steps, 0.0, 0.0

    def before_fit(self, learn):
        self.last = time.process_time(), time.perf_counter()

    def after_batch(self, learn):
        now = time.process_time(), time.perf_counter()
        self.cpu, self.wall, self.last = self.cpu + now[0] - self.last[0], self.wall + now[1] - self.last[1], now

    def used(self, learn) -> float:
        """The share that is used up."""
        return max(self.cpu / self.seconds, learn.steps / self.steps)

    def before_batch(self, learn):
        if self.used(learn) >= 1:
            raise miniai().CancelFitException


class Pace(callbacks.Callback):
    """Warm-up by steps, then half a cosine down to a hundredth: `callbacks.Schedule` by the share that is used up."""

    def __init__(self, budget: Budget, warm_up: int = 100):
        self.budget, self.warm_up = budget, warm_up

    def before_batch(self, learn):
        done = min(1.0, self.budget.used(learn))
        factor = min(1.0, (learn.steps + 1) / self.warm_up) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in learn.opt.param_groups:
            group["lr"] = group["base_lr"] * factor


def name_of(dtype: torch.dtype | None) -> str:
    """A precision, as results name it."""
    return str(dtype or torch.float32).removeprefix("torch.")


def use_average(learn) -> None:
    """Put the weights' moving average in place, if there is one."""
    for average in (callback for callback in learn.cbs if isinstance(callback, callbacks.EMA)):
        learn.detector.load_state_dict(average.state)


def examples(
    course: Course,
    squash: bool = False,
    augment: Callable = Augment,
    source: Callable = CocoDetections,
) -> CocoDetections:
    return source(course.data, course.split, SIZE, squash, augment=augment(SIZE, squash, course.seed))
