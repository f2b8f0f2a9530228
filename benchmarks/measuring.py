"""What the benchmarks of run.py share: clocks, random objects, a training step, and a count of its operations."""

import statistics
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from odutils.losses import DetectionLoss
from odutils.precision import half_precision
from odutils.presets import build
from odutils.recipe import Recipe
from odutils.training import make_learner

CLASSES = 80
NO_WORK = ("empty", "new_empty", "_unsafe_view", "_reshape_alias")  # beginnings of names: memory alone, no kernel


def wall_clock(device: torch.device) -> Callable[[], float]:
    """A clock in seconds that waits until the device has done what it was given."""

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def compare(baseline, ours, rounds: int, each: int = 1, clock: Callable[[], float] = time.process_time) -> dict:
    """Milliseconds of both, each run `rounds` times in turns; `each`: things done in one run.   clock: in seconds."""
    baseline()
    ours()
    times = []
    for _ in range(rounds):
        pair = []
        for function in (baseline, ours):
            start = clock()
            function()
            pair.append((clock() - start) * 1e3 / each)
        times.append(pair)
    ratios = [a / b for a, b in times]
    medians = [statistics.median(column) for column in zip(*times, strict=True)]
    spread = [round(ratio, 2) for ratio in (min(ratios), max(ratios))]
    return dict(zip(("baseline_ms", "ours_ms"), medians, strict=True), ratio=statistics.median(ratios), spread=spread)


def random_objects(images: int, most: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Boxes (N, M, 4) and labels (N, M) of 1 to `most` objects an image, as many small as large."""
    chance = torch.Generator().manual_seed(seed)
    size = 0.05 + 0.6 * torch.rand(images, most, 2, generator=chance) ** 2
    corner = torch.rand(images, most, 2, generator=chance) * (1 - size)
    labels = torch.randint(1, CLASSES + 1, (images, most), generator=chance)
    padding = torch.arange(most) >= torch.randint(1, most + 1, (images, 1), generator=chance)
    return torch.cat([corner, corner + size], dim=-1).masked_fill(padding[..., None], 0), labels.masked_fill(padding, 0)


class TrainingSteps:
    """Steps of `pyramid` on one batch, as training makes them and with the network alone, by the same optimiser."""

    def __init__(self, batch_size: int, size: int, device: torch.device, steps: int):
        """size: px of the square input.   steps: how many `train` and `network_alone` make."""
        self.device, self.steps = device, steps
        self.detector, recipe = build("pyramid"), Recipe(epochs=1)
        pixels = torch.randint(0, 256, (batch_size, 3, size, size), dtype=torch.uint8)
        known = torch.ones(batch_size, CLASSES, dtype=torch.bool)
        self.batch = [tensor.to(device) for tensor in (pixels, *random_objects(batch_size, 15), known)]
        loss = DetectionLoss(self.detector.grid(size, size))
        dls = SimpleNamespace(train=[self.batch] * steps, valid=[])
        self.learn = make_learner(self.detector, dls, recipe, loss, device)
        self.train()  # freezes what training freezes, for both
        self.learn.opt_func = None  # one optimiser, whose state is made by now

    def train(self) -> None:
        """Network, label assignment, loss, backward, clipping, optimiser, schedule and moving average."""
        self.learn.fit(1, valid=False)

    def network_alone(self) -> None:
        """Network, the sum of its outputs, backward and optimiser."""
        self.detector.train()
        for module in self.detector.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        dtype = half_precision(self.device.type)
        for _ in range(self.steps):
            with torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None):
                logits, codes = self.detector(self.batch[0])
            (logits.sum() + codes.sum()).backward()
            self.learn.opt.step()
            self.learn.opt.zero_grad()


class Operations(TorchDispatchMode):
    """Counts the operations that PyTorch hands to the device, forward and backward.

    On a GPU each is one launch or a few. Views and allocations are left out, because they compute nothing. Whatever is
    one operation of ATen counts as one: a convolution, a fused optimiser's step, a `_foreach_` on a list of tensors.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        returned = [value.alias_info for value in operation._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        if operation.namespace == "aten" and not is_view and not operation._schema.name[6:].startswith(NO_WORK):
            self.count += 1
        return operation(*args, **(kwargs or {}))


def count_operations(function: Callable[[], object]) -> int:
    with Operations() as operations:
        function()
    return operations.count


def operations_of_a_step() -> tuple[int, int]:
    """Operations of the network alone, and of a whole training step; neither depends on batch, size or machine."""
    steps = TrainingSteps(batch_size=2, size=64, device=torch.device("cpu"), steps=1)
    return count_operations(steps.network_alone), count_operations(steps.train)
