"""Callbacks that tell how the training goes: losses, COCO's metrics, the best weights so far, a progress bar."""

import csv
import math
import time
from pathlib import Path

import torch
from torch import nn

from odutils.callbacks import Callback
from odutils.curves import plot_losses
from odutils.files import replacing
from odutils.precision import diverged
from odutils.presets import save_detector

FLOAT16 = torch.finfo(torch.float16)


class LogLosses(Callback):
    """Mean loss and its class and box share of every epoch, in `losses.csv` and `losses.png`.

    Adding up does not wait for the device. Rows of earlier epochs, from before an interruption, stay; `seconds` counts
    from the last start.
    """

    order = 30
    remembers = ("rows", "sums", "count")

    def __init__(self, folder: Path):
        self.folder, self.rows = Path(folder), []
        self.sums, self.count = torch.zeros(3), 0

    def before_epoch(self, learn):
        if not (learn.training and learn.resumed_inside_epoch):
            self.sums = torch.zeros(3)
            self.count = 0
        self.started = time.perf_counter()

    def after_batch(self, learn):
        parts = learn.loss_func.parts
        self.sums = self.sums.to(parts.device) + torch.stack([learn.loss.detach(), *parts])  # (3,)
        self.count += 1

    def after_epoch(self, learn):
        kind = "train" if learn.training else "valid"
        means = (self.sums / max(1, self.count)).tolist()
        for name, mean in zip(("loss", "class_loss", "box_loss"), means, strict=True):
            learn.row[f"{kind}_{name}"] = mean
        if learn.training:
            learn.row["seconds"] = round(time.perf_counter() - self.started, 1)
        else:
            self.rows = [row for row in self.rows if row["epoch"] != learn.epoch] + [learn.row]
            write_losses(self.folder / "losses.csv", self.rows)
            plot_losses(self.folder / "losses.png", self.rows)


def write_losses(path: Path, rows: list[dict]) -> None:
    """One line an epoch; a cell that a row lacks is empty. Raises InputError if it cannot be written."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


class CocoMetrics(Callback):
    """COCO's metrics on the validation set every epoch, from the predictions that its loss needs anyway.

    A row's metric is None where there is nothing to measure it by: the validation set has no such object.
    """

    order = 25  # its figures are in the row before LogLosses writes it

    def __init__(self, dataset):
        self.dataset = dataset

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

        learn.scores = score_by_source(self.dataset, self.results)
        add_metrics(learn.row, learn.scores["all"])
        by_source = learn.scores["by_source"]
        for source, metrics in by_source.items() if len(by_source) > 1 else ():  # one source: the same figures again
            add_metrics(learn.row, metrics, f" {source}")


def add_metrics(row: dict, metrics: dict, of: str = "") -> None:
    """AP and AP50 into a row; pycocotools has -1 for what cannot be measured."""
    for name in ("AP", "AP50"):
        row[name + of] = metrics[name] if metrics[name] >= 0 else None


class SaveBest(Callback):
    """Save the detector whenever the validation's `metric` is at least as good as ever; the file is never half written.

    Of equals the later one stays: it has learned more. But a metric of 0 says only that nothing was found, which
    goes for good and for ruined weights alike, so among those, and where there is no metric, a small loss is good.
    Raises InputError, before it replaces anything, if the weights have grown beyond float16 and nothing is found.
    """

    order = 35  # after CocoMetrics and LogLosses, while the averaged weights are still in place
    remembers = ("best", "best_epoch", "better_epoch")

    def __init__(self, path: Path, metric: str = "AP", **about):
        self.path, self.metric, self.about = Path(path), metric, about
        self.best = [-math.inf, -math.inf]  # metric, minus loss
        self.best_epoch: int | None = None  # which of them was saved last
        self.better_epoch: int | None = None  # which was better than all before it, not only as good: for StopEarly

    def after_epoch(self, learn):
        if learn.training:
            return
        metric = learn.row.get(self.metric) or 0.0
        loss = learn.row["valid_loss"]
        value = [metric, 0.0 if metric > 0 else -loss]
        if value < self.best or math.isnan(sum(value)):
            return
        if metric == 0 and not fits_float16(learn.detector):
            raise diverged(learn, f"loss {loss:.4g}, weights beyond {FLOAT16.max:g} at the end")
        scores = getattr(learn, "scores", {})
        save_detector(self.path, learn.detector, **self.about, epoch=learn.epoch, scores=scores)
        if value > self.best:
            self.better_epoch = learn.epoch
        self.best, self.best_epoch = value, learn.epoch


def fits_float16(detector: nn.Module) -> bool:
    """Whether float16, as in the detector's file, can hold all of its numbers; healthy ones are far from the limit."""
    floating = [tensor for tensor in detector.state_dict().values() if tensor.is_floating_point()]
    return all(float(tensor.abs().max()) <= FLOAT16.max for tensor in floating)


class Progress(Callback):
    """A bar for the epochs, one for the batches, a line of figures an epoch; looks at the loss only now and then.

    columns: what to show of the row, by default what fits into 80 characters; losses.csv has the rest.
    """

    order = 50  # after Resume has said which epochs are left

    def __init__(self, *columns: str):
        self.columns = columns or ("epoch", "train_loss", "valid_loss", "AP", "AP50", "seconds")

    def before_fit(self, learn):
        from fastprogress import master_bar

        learn.epochs = self.bar = master_bar(learn.epochs)
        self.headed = False

    def before_epoch(self, learn):
        from fastprogress import progress_bar

        learn.dl = progress_bar(learn.dl, parent=self.bar, leave=False)

    def after_batch(self, learn):
        if learn.training and learn.steps % 20 == 0:
            self.bar.child.comment = f"loss {float(learn.loss.detach()):.3f}"

    def after_epoch(self, learn):
        if learn.training:
            return
        row = {name: learn.row[name] for name in self.columns if name in learn.row}
        if not self.headed:
            self.bar.write(list(row), table=True)
            self.headed = True
        self.bar.write([cell(value) for value in row.values()], table=True)


def cell(value: float | str | None) -> str:
    """A number as the table shows it; a dash where there is none."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
