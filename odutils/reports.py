"""Callbacks that tell how the training goes: losses, COCO's metrics, the best weights so far, a progress bar."""

import csv
import math
import time
from pathlib import Path

import torch

from odutils.callbacks import Callback
from odutils.files import replacing
from odutils.plots import COLOURS
from odutils.presets import save_detector

BLUE, RED, GREEN = (COLOURS[name] for name in ("blue", "red", "green"))


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
            self.sums, self.count = torch.zeros(3), 0
        self.started = time.perf_counter()

    def after_batch(self, learn):
        parts = learn.loss_func.parts
        self.sums = self.sums.to(parts.device) + torch.stack([learn.loss.detach(), *parts])  # (3,)
        self.count += 1

    def after_epoch(self, learn):
        kind, names = ("train" if learn.training else "valid"), ("loss", "class_loss", "box_loss")
        means = (self.sums / max(1, self.count)).tolist()
        learn.row |= {f"{kind}_{name}": mean for name, mean in zip(names, means, strict=True)}
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


def plot_losses(path: Path, rows: list[dict]) -> None:
    """The training's and the validation's loss by epoch, and AP50 on an axis of its own at the right, as an image."""
    from matplotlib.figure import Figure  # not pyplot: a notebook's own figures stay as they are
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes, epochs = figure.subplots(), [row["epoch"] + 1 for row in rows]
    for name, colour, text in (("train_loss", BLUE, "training"), ("valid_loss", RED, "validation (averaged weights)")):
        axes.plot(epochs, [row.get(name, math.nan) for row in rows], "o-", color=colour, markersize=4, label=text)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if any("AP50" in row for row in rows):
        right = axes.twinx()
        right.plot(epochs, [row.get("AP50", math.nan) for row in rows], "s--", color=GREEN, markersize=4, label="AP50")
        right.set_ylabel("AP50", color=GREEN)
        right.set_ylim(0, None)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


class CocoMetrics(Callback):
    """COCO's metrics on the validation set every epoch, from the predictions that its loss needs anyway."""

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
        everything = learn.scores["all"]
        learn.row |= {"AP": everything["AP"], "AP50": everything["AP50"]}
        by_source = learn.scores["by_source"]
        for source, metrics in by_source.items() if len(by_source) > 1 else ():  # one source: the same figures again
            learn.row |= {f"AP {source}": metrics["AP"], f"AP50 {source}": metrics["AP50"]}


class SaveBest(Callback):
    """Save the detector whenever the validation's `metric` is at least as good as ever; the file is never half written.

    Where nothing computes the metric, a small loss is good. Of equals the later one stays: it has learned more.
    """

    order = 35  # after CocoMetrics and LogLosses, while the averaged weights are still in place
    remembers = ("best",)

    def __init__(self, path: Path, metric: str = "AP", **about):
        self.path, self.metric, self.about, self.best = Path(path), metric, about, -math.inf

    def after_epoch(self, learn):
        if learn.training:
            return
        value = learn.row[self.metric] if self.metric in learn.row else -learn.row["valid_loss"]
        if value >= self.best:
            scores = getattr(learn, "scores", {})
            save_detector(self.path, learn.detector, **self.about, epoch=learn.epoch, scores=scores)
            self.best = value


class Progress(Callback):
    """A bar for the epochs, one for the batches, a line of figures an epoch; looks at the loss only now and then.

    columns: what to show of the row, by default all: in a notebook there is room for few.
    """

    order = 50  # after Resume has said which epochs are left

    def __init__(self, *columns: str):
        self.columns = columns

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
        row = {name: learn.row[name] for name in self.columns or learn.row}
        if not self.headed:
            self.bar.write(list(row), table=True)
            self.headed = True
        self.bar.write([f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()], table=True)
