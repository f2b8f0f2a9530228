"""Callbacks of miniai's Learner that steer the training, one idea each.

precision.py, processes.py, reports.py, resume.py and stopping.py hold the others.

The Learner calls `before_fit`, `before_epoch`, `before_batch`, `after_step`, … of every callback, those with a low
`order` first. Callbacks meet in the learner's attributes:

    attribute             what it is                                        written by              read by
    detector              the network itself                                make_learner            everyone
    model                 what trains it: the detector, or a wrapper of it  make_learner, Share     DetectorStep
    opt                   the optimiser; a group's base_lr is its top rate  Learner                 Schedule, Resume
    n_epochs              epochs of the whole run                           Learner                 Resume
    epochs                the epochs that are left, an iterable             Resume, StopEarly,      Learner
                                                                            Progress
    epoch, training       which epoch, and whether it trains or validates   Learner                 everyone
    dl                    the loader of this epoch                          Learner, Progress       Learner
    steps                 batches trained on since the very first           Steps, Resume           everyone
    resumed_inside_epoch  this epoch began before the last start            Steps, Resume           LogLosses
    batch                 (images, boxes, labels, known)                    Learner, ToDevice       DetectorStep
    preds                 (class logits, box codes)                         DetectorStep            CocoMetrics
    loss                  of the batch; of the joint one after after_batch  DetectorStep, Share     LogLosses, Progress,
                                                                                                    StopIfDiverged
    loss_func.parts       its class and its box share (2,)                  DetectionLoss, Share    LogLosses
    scaler                GradScaler, enabled for float16 only              MixedPrecision          DetectorStep,
                                                                                                    StopIfDiverged
    gradient_norm         length of the gradient before it is clipped       ClipGradients           StopIfDiverged
    row                   what this epoch logs, name to number or None      Steps; LogLosses,       SaveBest, Progress
                                                                            CocoMetrics add to it
    scores                all of the last validation's metrics              CocoMetrics             SaveBest
"""

import math

import torch
from torch import Tensor, nn

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


class Callback:
    """What miniai's Learner asks of a callback: an order. Its methods are named after events.

    remembers: the attributes that must survive an interruption (see Resume).
    """

    order = 0
    remembers: tuple[str, ...] = ()

    def memory(self) -> dict:
        """What a checkpoint holds of this callback: numbers, texts, tensors, and lists and dicts of them."""
        return {name: getattr(self, name) for name in self.remembers}

    def recall(self, memory: dict) -> None:
        """Take up what `memory` returned before the interruption."""
        vars(self).update(memory)


class Steps(Callback):
    """Counts the steps and begins each epoch's row: every learner with callbacks of ours needs it.

    A step that a float16 scaler skips counts, too: the schedule and the order of the images go by batches.
    """

    def before_fit(self, learn):
        learn.steps = 0
        learn.resumed_inside_epoch = False

    def before_epoch(self, learn):
        if learn.training:
            learn.row = {"epoch": learn.epoch}

    def after_step(self, learn):
        learn.steps += 1


class ToDevice(Callback):
    """Moves each batch to the device; from pinned memory without waiting for it (see `make_loader`)."""

    order = -10

    def __init__(self, device: torch.device):
        self.device = device

    def before_batch(self, learn):
        # Only CUDA orders such a copy with the work that follows it.
        learn.batch = [part.to(self.device, non_blocking=self.device.type == "cuda") for part in learn.batch]


class FreezeBackbone(Callback):
    """Keep the ImageNet backbone's batch norm and its first layers: trained on few images, they would only get worse.

    Batch norm in eval mode stops its statistics as well; stopping gradients alone does not.
    whole: freeze all of the backbone.
    """

    def __init__(self, whole: bool = False):
        self.whole = whole

    def before_fit(self, learn):
        backbone = learn.detector.backbone
        first = backbone.frozen_parts() if hasattr(backbone, "frozen_parts") else []
        self.norms = [module for module in backbone.modules() if isinstance(module, NORMS)]
        for module in [*([backbone] if self.whole else first), *self.norms]:
            module.requires_grad_(False)

    def before_epoch(self, learn):
        for norm in self.norms:
            norm.eval()


class Schedule(Callback):
    """Learning rate: a linear rise over `warm_up` steps, then half a cosine down to a hundredth at step `total`.

    A group's `base_lr` is its highest rate. A short training warms up for a quarter of its steps at most.
    """

    def __init__(self, total: int, warm_up: int = 200):
        self.total, self.warm_up = total, min(warm_up, total // 4)

    def factor(self, step: int) -> float:
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = min(1.0, (step - self.warm_up) / max(1, self.total - self.warm_up))
        return 0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2

    def before_batch(self, learn):
        if learn.training:
            for group in learn.opt.param_groups:
                group["lr"] = group["base_lr"] * self.factor(learn.steps)


class ClipGradients(Callback):
    """Scale the gradient down to `norm` if it is longer, so that one odd image does not throw the weights off."""

    order = 20

    def __init__(self, norm: float = 10.0):
        self.norm = norm

    def after_backward(self, learn):
        learn.gradient_norm = nn.utils.clip_grad_norm_(learn.detector.parameters(), self.norm)


class EMA(Callback):
    """An exponential moving average of the weights, used for validation and saved as the result: calmer and better.

    The decay grows with the steps, min(decay, (1 + steps) / (10 + steps)), so that it forgets the random start.
    Integers (how many batches batch norm has seen) are taken over as they are.
    """

    order = -20  # the average is in place before the others look at an epoch, and the weights are back before they save

    def __init__(self, decay: float = 0.998):
        self.decay, self.state = decay, None

    def before_fit(self, learn):
        self.live = learn.detector.state_dict()  # the detector's own tensors, which training changes in place
        if self.state is None:
            self.state = {name: tensor.clone() for name, tensor in self.live.items()}
        averaged = [name for name, tensor in self.live.items() if tensor.is_floating_point()]
        self.pairs = [self.state[name] for name in averaged], [self.live[name] for name in averaged]
        self.integers = [name for name in self.live if name not in averaged]
        self.own = None  # the weights, while the average is in their place

    @torch.no_grad()
    def after_step(self, learn):
        decay = min(self.decay, (1 + learn.steps) / (10 + learn.steps))  # Steps has yet to count this one
        torch._foreach_lerp_(*self.pairs, 1 - decay)

    def before_epoch(self, learn):
        if not learn.training:
            self.own = {name: tensor.clone() for name, tensor in self.live.items()}
            for name in self.integers:
                self.state[name].copy_(self.live[name])
            copy_tensors(self.state, self.live)

    def cleanup_epoch(self, learn):
        if self.own is not None:
            copy_tensors(self.own, self.live)
            self.own = None

    def memory(self) -> dict:
        return {"state": self.state}

    def recall(self, memory: dict) -> None:
        copy_tensors(memory["state"], self.state)


@torch.no_grad()
def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Overwrite the tensors of `target` in place. Raises KeyError or RuntimeError if those of `source` do not fit."""
    for name, tensor in target.items():
        tensor.copy_(source[name])
