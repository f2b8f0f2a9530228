"""What is the same for all entrants: images, minutes, order, and how a run counts its time."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Sampler

from odutils import callbacks
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections
from odutils.recipe import Recipe
from odutils.training import miniai

SIZE = 224  # px of every entrant's square input: the article's anchors are made for it
MEAN, STD = [127.0] * 3, [128.0] * 3  # of EfficientNet-Lite0's pixels
# Optimiser, rates and batch of all entrants but the article's: half the usual batch, for more steps in few minutes, and
# the rates lowered to fit.
OURS = Recipe(size=SIZE, batch_size=8, lr=1e-3, backbone_lr=1.4e-4)


class Course(NamedTuple):
    """What is the same for all entrants: the images, the minutes of CPU time, the seed."""

    data: Path
    split: str
    minutes: float
    seed: int
    article: Path  # the file with the article's code


class Run(NamedTuple):
    """An entrant, ready to start."""

    learn: object  # miniai's Learner; `learn.detector` is the network
    predictor: object  # has `batch(images, threshold, class_agnostic)`
    sampler: "Endless"
    batch_size: int
    image: Tensor  # what the network takes for one image: for counting


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
    """Ends the training when its minutes of CPU time are used up, loading included."""

    order = 30  # before the checkpoint is written
    remembers = ("spent",)

    def __init__(self, minutes: float):
        self.seconds, self.spent = minutes * 60, 0.0

    def before_fit(self, learn):
        self.last = time.process_time()

    def after_batch(self, learn):
        now = time.process_time()
        self.spent, self.last = self.spent + now - self.last, now

    def before_batch(self, learn):
        if self.spent >= self.seconds:
            raise miniai().CancelFitException


class Pace(callbacks.Callback):
    """Warm-up by steps, then half a cosine down to a hundredth: `callbacks.Schedule` by the share of the time used."""

    def __init__(self, budget: Budget, warm_up: int = 100):
        self.budget, self.warm_up = budget, warm_up

    def before_batch(self, learn):
        done = min(1.0, self.budget.spent / self.budget.seconds)
        factor = min(1.0, (learn.steps + 1) / self.warm_up) * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)
        for group in learn.opt.param_groups:
            group["lr"] = group["base_lr"] * factor


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
