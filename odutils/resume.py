"""A training that was interrupted goes on where it was: the checkpoint, and the callback that writes and reads it."""

import pickle
from pathlib import Path

import numpy as np
import torch

from odutils.callbacks import Callback
from odutils.datasets import EpochSampler
from odutils.errors import InputError
from odutils.files import replacing

CONTENT = {"settings", "detector", "optimiser", "steps", "epoch", "inside", "memories"}


class Resume(Callback):
    """Write a checkpoint every `every` steps and after every epoch; start from it if it is there.

    All that a run remembers is in it, and all chance follows from the seed and the step, so that a run that was killed
    at any moment ends like one that was not (bit for bit on the CPU; a graphics card adds in another order each time).
    settings: what decides the result, as JSON would hold it.   writes: of several processes only the first does.
    Raises InputError if the checkpoint cannot be read, or was written with other settings.
    """

    order = 40  # what the other callbacks did at this step belongs into the checkpoint

    def __init__(
        self,
        path: Path,
        sampler: EpochSampler,
        batch_size: int,
        settings: dict,
        seed: int = 0,
        every: int = 200,
        writes: bool = True,
    ):
        self.path, self.sampler, self.batch_size = Path(path), sampler, batch_size
        self.settings, self.seed, self.every, self.writes = settings, seed, every, writes

    def before_fit(self, learn):
        self.epoch, self.inside = 0, 0  # inside: steps done in this epoch
        if self.path.exists():
            self.epoch, self.inside = restore(
                learn, read_checkpoint(self.path, self.settings, learn.detector.mean.device)
            )
        learn.resumed_inside_epoch = self.inside > 0
        learn.epochs = range(self.epoch, learn.n_epochs)

    def before_epoch(self, learn):
        self.epoch, self.validated = learn.epoch, False
        if learn.training:
            self.sampler.epoch, self.sampler.start = learn.epoch, self.inside * self.batch_size

    def before_batch(self, learn):  # for dropout
        torch.manual_seed(
            np.random.SeedSequence([self.seed, learn.steps, self.sampler.process]).generate_state(1).item()
        )

    def after_batch(self, learn):
        if learn.training:
            self.inside += 1
            if learn.steps % self.every == 0:
                self.save(learn)

    def after_epoch(self, learn):
        self.validated = not learn.training

    def cleanup_epoch(self, learn):
        if self.validated:  # and EMA has put the weights back
            self.epoch, self.inside, learn.resumed_inside_epoch = learn.epoch + 1, 0, False
            self.save(learn)

    def save(self, learn):
        if self.writes:
            with replacing(self.path) as temporary:
                torch.save(snapshot(learn, self.settings, self.epoch, self.inside), temporary)


def snapshot(learn, settings: dict, epoch: int, inside: int) -> dict:
    """All that a training remembers `inside` steps into an epoch."""
    memories = {type(callback).__name__: memory for callback in learn.cbs if (memory := memory_of(callback))}
    return dict(
        settings=settings,
        detector=learn.detector.state_dict(),
        optimiser=learn.opt.state_dict(),
        steps=learn.steps,
        epoch=epoch,
        inside=inside,
        memories=memories,
    )


def memory_of(callback) -> dict:
    return {name: getattr(callback, name) for name in getattr(callback, "remembers", ())}


def restore(learn, state: dict) -> tuple[int, int]:
    """Put a snapshot back into the learner and its callbacks. Returns the epoch and the steps done in it."""
    learn.detector.load_state_dict(state["detector"])
    learn.opt.load_state_dict(state["optimiser"])
    learn.steps = state["steps"]
    for callback in learn.cbs:
        vars(callback).update(state["memories"].get(type(callback).__name__, {}))
    return state["epoch"], state["inside"]


def read_checkpoint(path: Path, settings: dict, device: torch.device) -> dict:
    """A snapshot from a file. Raises InputError if it is none, or its settings differ (one that it lacks, does not)."""
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:100]
        raise InputError(f"{path}: not a checkpoint, or damaged: remove it to begin anew ({reason})") from error
    if not isinstance(state, dict) or not CONTENT <= state.keys():
        raise InputError(f"{path}: not a checkpoint of this project: choose another folder to write to")
    differing = [name for name, value in settings.items() if state["settings"].get(name, value) != value]
    if differing:
        raise InputError(
            f"{path}: from a run with other {', '.join(differing)}: repeat those, or choose another folder to write to"
        )
    return state
