"""Callbacks of miniai's Learner that steer the training, one idea each; reports.py and resume.py hold the others.

The Learner calls `before_fit`, `before_epoch`, `before_batch`, `after_step`, … of every callback, those with a low
`order` first. `learn.steps` counts the optimiser's steps since the very first one; `learn.row` collects what one epoch
logs; `learn.detector` is the network itself, `learn.model` what trains it (the same, or a wrapper around it).
"""

import math
from contextlib import ExitStack

import torch
from torch import Tensor, nn


class Callback:
    """What miniai's Learner asks of a callback: an order. Its methods are named after events.

    remembers: the attributes that must survive an interruption (see Resume).
    """

    order = 0
    remembers: tuple[str, ...] = ()


class FreezeBackbone(Callback):
    """Keep the ImageNet backbone's batch norm as it is, and the first layers, too: few images would only unlearn them.

    Batch norm in eval mode stops its statistics as well; stopping gradients alone does not.
    whole: freeze all of the backbone.
    """

    def __init__(self, whole: bool = False):
        self.whole = whole

    def before_fit(self, learn):
        backbone = learn.detector.backbone
        first = backbone.frozen_parts() if hasattr(backbone, "frozen_parts") else []
        self.norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
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
    """Scale the gradient down to `norm` if it is longer: one odd image shall not throw the weights off."""

    order = 20

    def __init__(self, norm: float = 10.0):
        self.norm = norm

    def after_backward(self, learn):
        nn.utils.clip_grad_norm_(learn.detector.parameters(), self.norm, foreach=True)


class MixedPrecision(Callback):
    """Run the network in bfloat16 where the graphics card computes in it; elsewhere change nothing.

    bfloat16 has the range of float32, so small gradients do not vanish; float16 needs a loss scaler against that, which
    skips steps. The loss is always computed in float32.
    """

    order = 10

    def before_fit(self, learn):
        self.device, self.stack = learn.detector.mean.device.type, ExitStack()
        # Cards before Ampere (Colab's T4) only imitate bfloat16, slowly.
        self.enabled = self.device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)

    def before_batch(self, learn):
        self.stack.enter_context(torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.enabled))

    def after_predict(self, learn):
        self.stack.close()

    def cleanup_batch(self, learn):
        self.stack.close()  # once more does no harm, and a network that raises must not leave it open


class EMA(Callback):
    """An exponential moving average of the weights, used for validation and saved as the result: calmer and better.

    The decay grows with the steps, min(decay, (1 + steps) / (10 + steps)), so that it forgets the random start.
    """

    order = -20  # the average is in place before the others look at an epoch, and the weights are back before they save
    remembers = ("state",)

    def __init__(self, decay: float = 0.998):
        self.decay, self.state = decay, None

    def before_fit(self, learn):
        self.state = self.state or {name: t.detach().clone() for name, t in learn.detector.state_dict().items()}

    @torch.no_grad()
    def after_step(self, learn):
        decay = min(self.decay, (1 + learn.steps) / (10 + learn.steps))
        current = learn.detector.state_dict()
        names = [name for name, tensor in current.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.state[n] for n in names], [current[n] for n in names], 1 - decay)

    def before_epoch(self, learn):
        if not learn.training:
            self.own = {name: tensor.clone() for name, tensor in learn.detector.state_dict().items()}
            learn.detector.load_state_dict(self.state)

    def cleanup_epoch(self, learn):
        if not learn.training:
            learn.detector.load_state_dict(self.own)


class Share(Callback):
    """Let the processes that `accelerator` knows of work on one batch, each on its part, as one would on all of it.

    DistributedDataParallel takes the mean of the processes' gradients. The joint batch wants their sum, with one
    divisor for all (see DetectionLoss), so each loss counts as often as there are processes. Only the first process
    validates: there nothing may wait for the others.
    """

    order = 15  # after FreezeBackbone: what needs no gradient is settled once the network is wrapped; before LogLosses

    def __init__(self, accelerator):
        self.accelerator = accelerator

    def before_fit(self, learn):
        self.alone = learn.loss_func.normalise
        learn.model = self.accelerator.prepare_model(learn.model)

    def together(self, total: Tensor) -> Tensor:
        return self.alone(self.accelerator.reduce(total, "sum"))

    def before_epoch(self, learn):
        learn.loss_func.normalise = self.together if learn.training else self.alone

    def after_loss(self, learn):
        if learn.training:
            learn.loss = learn.loss * self.accelerator.num_processes

    def after_batch(self, learn):
        if learn.training:  # what is logged is the loss of the joint batch
            parts = self.accelerator.reduce(learn.loss_func.parts, "sum")
            learn.loss, learn.loss_func.parts = parts.sum(), parts
