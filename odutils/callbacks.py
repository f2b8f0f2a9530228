"""Callbacks of miniai's Learner, one idea each.

The Learner calls `before_fit`, `before_epoch`, `before_batch`, `after_step`, … of every callback, those with a low `order`
first. `learn.steps` counts the optimiser's steps since the very first one; `learn.row` collects what one epoch logs.
"""

import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from odutils.errors import InputError
from odutils.files import replacing


class Callback:
    """What miniai's Learner asks of a callback: an order. Its methods are named after events.

    remembers: the attributes that must survive an interruption (see Resume).
    """

    order = 0
    remembers: tuple[str, ...] = ()


class FreezeBody(Callback):
    """Keep the ImageNet body's batch norm as it is, and the first layers, too: few pictures would only unlearn them.

    Batch norm in eval mode stops its statistics as well; stopping gradients alone does not.   whole: freeze all of the body.
    """

    def __init__(self, whole: bool = False):
        self.whole = whole

    def before_fit(self, learn):
        body = learn.detector.body
        frozen = [body] if self.whole or not hasattr(body, "frozen_parts") else body.frozen_parts()
        self.norms = [module for module in body.modules() if isinstance(module, nn.BatchNorm2d)]
        for module in [*frozen, *self.norms]:
            module.requires_grad_(False)

    def before_epoch(self, learn):
        for norm in self.norms:
            norm.eval()


class Schedule(Callback):
    """Learning rate: a linear rise over `warm_up` steps, then half a cosine down to a hundredth at step `total`."""

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
    """Scale the gradient down to `norm` if it is longer: one odd picture shall not throw the weights off."""

    order = 20  # after MixedPrecision has unscaled it

    def __init__(self, norm: float = 10.0):
        self.norm = norm

    def after_backward(self, learn):
        nn.utils.clip_grad_norm_(learn.detector.parameters(), self.norm, foreach=True)


class MixedPrecision(Callback):
    """Run the network in bfloat16 where the device is fast at it (needs no loss scaling); elsewhere change nothing."""

    order = 10

    def before_fit(self, learn):
        device = learn.detector.mean.device.type
        self.enabled = device == "cuda" and torch.cuda.is_bf16_supported()
        self.context = torch.autocast(device, dtype=torch.bfloat16, enabled=self.enabled)

    def before_batch(self, learn):
        self.context.__enter__()

    def after_predict(self, learn):
        self.context.__exit__(None, None, None)


class EMA(Callback):
    """An exponential moving average of the weights, used for validation and saved as the result: it is calmer and better.

    The decay grows with the steps, min(decay, (1 + steps) / (10 + steps)), so that the average forgets the random start.
    """

    order = -20
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


class LogLosses(Callback):
    """Mean loss and its class and box share of every epoch, into `losses.csv` and `losses.png`; nothing waits for the device.

    Rows of earlier epochs, from before an interruption, stay.
    """

    order = 30
    remembers = ("rows", "sums", "count")

    def __init__(self, folder: Path):
        self.folder, self.rows = Path(folder), []
        self.sums, self.count = torch.zeros(3), 0

    def before_epoch(self, learn):
        if learn.training:
            learn.row = {"epoch": learn.epoch}
            self.started = time.time()
        if not (learn.training and learn.resumed_inside_epoch):
            self.sums, self.count = torch.zeros(3), 0

    def after_batch(self, learn):
        parts = learn.loss_func.parts
        self.sums = self.sums.to(parts.device) + torch.stack([learn.loss.detach(), *parts])
        self.count += 1

    def after_epoch(self, learn):
        names = ("loss", "class_loss", "box_loss")
        kind = "train" if learn.training else "valid"
        means = (self.sums / max(1, self.count)).tolist()
        learn.row |= {f"{kind}_{name}": mean for name, mean in zip(names, means, strict=True)}
        if learn.training:
            learn.row["seconds"] = round(time.time() - self.started, 1)
        else:
            self.rows = [row for row in self.rows if row["epoch"] != learn.epoch] + [learn.row]
            self.write()

    def write(self):
        """The rows so far as a table; missing cells are empty."""
        with replacing(self.folder / "losses.csv") as path, open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(self.rows[-1]), extrasaction="ignore", restval="")
            writer.writeheader()
            writer.writerows(self.rows)


class CocoMetrics(Callback):
    """COCO's metrics on the validation set every epoch, from the predictions that its loss needs anyway."""

    order = 20  # its figures are in the row before LogLosses writes it

    def __init__(self, dataset, by_source: bool = True):
        self.dataset, self.by_source = dataset, by_source

    def before_epoch(self, learn):
        self.results, self.next = [], 0

    def after_batch(self, learn):
        if learn.training:
            return
        from odutils.evaluation import results_of_batch

        self.results += results_of_batch(self.dataset, self.next, learn.preds, learn.loss_func.grid)
        self.next += len(learn.preds[0])

    def after_epoch(self, learn):
        if learn.training:
            return
        from odutils.evaluation import score_by_source

        scores = score_by_source(self.dataset, self.results)
        learn.row |= {"AP": scores["all"]["AP"], "AP50": scores["all"]["AP50"]}
        for source, metrics in scores["by_source"].items():
            learn.row |= {f"AP {source}": metrics["AP"], f"AP50 {source}": metrics["AP50"]}
        learn.scores = scores


class SaveBest(Callback):
    """Save the detector whenever the validation's `metric` is better than ever; `best.safetensors` is never half written."""

    order = 35  # after CocoMetrics and LogLosses, while the averaged weights are still in place
    remembers = ("best",)

    def __init__(self, path: Path, metric: str = "AP", **about):
        self.path, self.metric, self.about, self.best = Path(path), metric, about, -math.inf

    def after_epoch(self, learn):
        if learn.training:
            return
        from odutils.presets import save_detector

        value = learn.row.get(self.metric, -learn.row["valid_loss"])  # without metrics the loss must do
        if value > self.best:
            self.best = value
            save_detector(self.path, learn.detector, **self.about, epoch=learn.epoch, scores=getattr(learn, "scores", {}))


class Resume(Callback):
    """Write a checkpoint every `every` steps and after every epoch; start from it if it is there.

    All that a run remembers is in it, and all chance follows from the seed and the step, so that a run that was killed at any
    moment ends like one that was not. Raises InputError if the checkpoint was written with other `settings`.
    """

    order = 40  # last: what the other callbacks did at this step belongs into the checkpoint

    def __init__(self, path: Path, sampler, batch_size: int, settings: dict, seed: int = 0, every: int = 200):
        self.path, self.sampler, self.batch_size = Path(path), sampler, batch_size
        self.settings, self.seed, self.every = settings, seed, every
        self.writes = True  # of several processes only the first does

    def before_fit(self, learn):
        learn.steps, self.epoch, self.inside = 0, 0, 0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=learn.detector.mean.device)
            differing = [name for name, value in self.settings.items() if state["settings"].get(name) != value]
            if differing:
                raise InputError(f"{self.path}: from a run with other {', '.join(differing)}: repeat those, or choose another --out")
            learn.detector.load_state_dict(state["detector"])
            learn.opt.load_state_dict(state["optimiser"])
            learn.steps, self.epoch, self.inside = state["steps"], state["epoch"], state["inside"]
            for callback in learn.cbs:
                vars(callback).update(state["memories"].get(type(callback).__name__, {}))
        learn.resumed_inside_epoch = self.inside > 0
        learn.epochs = range(self.epoch, learn.n_epochs)

    def before_epoch(self, learn):
        if learn.training:
            self.epoch, self.sampler.epoch = learn.epoch, learn.epoch
            self.sampler.start = self.inside * self.batch_size
        self.finished = False

    def before_batch(self, learn):
        torch.manual_seed(np.random.SeedSequence([self.seed, learn.steps]).generate_state(1).item())  # for dropout

    def after_step(self, learn):
        learn.steps += 1

    def after_batch(self, learn):
        if learn.training:
            self.inside += 1
            if learn.steps % self.every == 0:
                self.save(learn)

    def after_epoch(self, learn):
        self.finished = not learn.training

    def cleanup_epoch(self, learn):
        if self.finished:  # EMA has put the weights back
            self.epoch, self.inside, learn.resumed_inside_epoch = learn.epoch + 1, 0, False
            self.save(learn)

    def save(self, learn):
        if not self.writes:
            return
        memories = {type(c).__name__: {name: getattr(c, name) for name in getattr(c, "remembers", ())} for c in learn.cbs}
        state = dict(
            settings=self.settings,
            detector=learn.detector.state_dict(),
            optimiser=learn.opt.state_dict(),
            steps=learn.steps,
            epoch=self.epoch,
            inside=self.inside,
            memories={name: memory for name, memory in memories.items() if memory},
        )
        with replacing(self.path) as temporary:
            torch.save(state, temporary)


class Progress(Callback):
    """A bar for the epochs and one for the batches, and a line of figures an epoch; looks at the loss only now and then."""

    order = 50  # after Resume has said which epochs are left

    def before_fit(self, learn):
        from fastprogress import master_bar

        learn.epochs = self.bar = master_bar(learn.epochs)
        self.columns = None

    def before_epoch(self, learn):
        from fastprogress import progress_bar

        learn.dl = progress_bar(learn.dl, parent=self.bar, leave=False)

    def after_batch(self, learn):
        if learn.training and learn.steps % 20 == 0:
            self.bar.child.comment = f"loss {float(learn.loss):.3f}"

    def after_epoch(self, learn):
        if learn.training:
            return
        if self.columns is None:
            self.columns = list(learn.row)
            self.bar.write(self.columns, table=True)
        self.bar.write([f"{v:.4g}" if isinstance(v, float) else str(v) for v in learn.row.values()], table=True)
