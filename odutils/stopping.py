"""Early stopping: the training ends once the validation has not become better for some epochs."""

from collections.abc import Callable, Iterator

import torch

from odutils.callbacks import Callback
from odutils.errors import plural
from odutils.reports import SaveBest


class StopEarly(Callback):
    """End the training after `patience` epochs in a row that were not better than the best one before them.

    SaveBest measures it. An epoch that is only as good does not count as better, although its weights are saved: an AP
    that stays at 1, say, ends the training. What decides is SaveBest's `better_epoch`, which a checkpoint holds. So a
    training that stopped stays stopped when it is started again, and goes on where `patience` has been raised.
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
        better = self.best.better_epoch
        if better is None or epoch - 1 - better < self.patience:  # None: a checkpoint from before it was noted
            return ""
        measure = f"{self.best.metric} {self.best.best[0]:.4g}" if self.best.best[0] > 0 else "the lowest loss"
        waited = plural(epoch - 1 - better, "epoch")
        return (
            f"stopped after epoch {epoch - 1}: not better than epoch {better} ({measure}) for {waited}; "
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
