"""The curves of a training as an image."""

from pathlib import Path

import numpy as np

from odutils.files import replacing
from odutils.plots import COLOURS


def plot_losses(path: Path, rows: list[dict]) -> None:
    """The training's and the validation's loss by epoch, and AP50 on an axis of its own at the right, as an image."""
    from matplotlib.figure import Figure  # not pyplot: a notebook's own figures stay as they are
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    epochs = [row["epoch"] + 1 for row in rows]
    for name, colour, text in (
        ("train_loss", COLOURS["blue"], "training"),
        ("valid_loss", COLOURS["red"], "validation (averaged weights)"),
    ):
        axes.plot(epochs, column_of(rows, name), "o-", color=colour, markersize=4, label=text)
    axes.set(xlabel="epoch", ylabel="loss", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if not np.isnan(column_of(rows, "AP50")).all():
        right = axes.twinx()
        right.plot(epochs, column_of(rows, "AP50"), "s--", color=COLOURS["green"], markersize=4, label="AP50")
        right.set_ylabel("AP50", color=COLOURS["green"])
        right.set_ylim(0, None)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def column_of(rows: list[dict], name: str) -> np.ndarray:
    """A column (rows,) of numbers, NaN where a row has none."""
    return np.array([row.get(name) for row in rows], float)
