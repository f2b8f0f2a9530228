"""Early stopping: the training ends once the validation has not become better for some epochs."""

from collections.abc import Callable, Iterator

import torch

from odutils.callbacks import Callback
from odutils.errors import plural
from odutils.reports import SaveBest


class StopEarly(Callback):
    """End the training after `patience` epochs in a row in which SaveBest saved nothing: its measure, its tie rule.

    What decides is SaveBest's best epoch, which a checkpoint holds. So a training that stopped stays stopped when it is
    started again, and goes on where `patience` has been raised.
    best: the SaveBest of this training; None in a process that does not validate.   accelerator: knows the other
    processes, if there are any, which have to hear of the decision.
    """

    order = 45  # after Resume (40) has said which epochs are left, before Progress (50) shows them

    def __init__(self, patience: int, best: SaveBest | None, accelerator=None):
        self.patience, self.best, self.accelerator = patience, best, accelerator
        self.reason = ""  # why the training was stopped, for people; "" if it was not

    def before_fit(self, learn):
        learn.epochs = EpochsUntil(learn.epochs, lambda epoch: self.is_over(epoch, learn.detector.mean.device))

    def is_over(self, epoch: int, device: torch.device) -> bool:
        """Whether to stop before `epoch` begins; every process gets the answer of the one that validates."""
        if self.best:
            self.reason = self.reason_before(epoch)
        if self.accelerator is None:
            return bool(self.reason)
        return bool(self.accelerator.reduce(torch.tensor(float(bool(self.reason)), device=device), "sum") > 0)

    def reason_before(self, epoch: int) -> str:
        """Why the training should stop before `epoch`, "" if it should go on."""
        saved = self.best.best_epoch
        if saved is None or epoch - 1 - saved < self.patience:  # None: a checkpoint from before it was noted
            return ""
        measure = f"{self.best.metric} {self.best.best[0]:.4g}" if self.best.best[0] > 0 else "the lowest loss"
        waited = plural(epoch - 1 - saved, "epoch")
        return (
            f"stopped after epoch {epoch - 1}: not better for {waited} than epoch {saved}, the best ({measure}); "
            "a higher --patience goes on"
        )


class EpochsUntil:
    """The epochs that are left, asked for one by one; they end before the first one for which `is_over` holds."""

    def __init__(self, epochs: range, is_over: Callable[[int], bool]):
        self.epochs, self.is_over = epochs, is_over

    def __len__(self) -> int:
        return len(self.epochs)  # at most: what a progress bar shows

    def __iter__(self) -> Iterator[int]:
        for epoch in self.epochs:
            if self.is_over(epoch):
                return
            yield epoch
