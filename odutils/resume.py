"""A training that was interrupted goes on where it was: the checkpoint, and the callback that writes and reads it."""

import pickle
import reprlib
from pathlib import Path

import numpy as np
import torch

from odutils.callbacks import Callback
from odutils.datasets import EpochSampler
from odutils.errors import InputError, plain_text
from odutils.files import replacing
from odutils.precision import diverged

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
        self.epoch = 0
        self.inside = 0  # steps done in this epoch
        self.validated = False  # whether this epoch is complete
        if self.path.exists():
            state = read_checkpoint(self.path, self.settings, learn.detector.mean.device)
            self.epoch, self.inside = restore(learn, state, self.path)
        learn.resumed_inside_epoch = self.inside > 0
        learn.epochs = range(self.epoch, learn.n_epochs)

    def before_epoch(self, learn):
        self.epoch = learn.epoch
        if learn.training:
            self.sampler.epoch = learn.epoch
            self.sampler.start = self.inside * self.batch_size

    def before_batch(self, learn):  # for dropout
        seed = np.random.SeedSequence([self.seed, learn.steps, self.sampler.process]).generate_state(1)
        torch.manual_seed(seed.item())

    def after_batch(self, learn):
        if learn.training:
            self.inside += 1
            if learn.steps % self.every == 0:
                self.save(learn)

    def after_epoch(self, learn):
        self.validated = not learn.training

    def cleanup_epoch(self, learn):
        if self.validated:  # and EMA has put the weights back
            self.validated = False  # this event also ends an epoch whose `before_epoch` was interrupted
            self.epoch = learn.epoch + 1
            self.inside = 0
            learn.resumed_inside_epoch = False
            self.save(learn)

    def save(self, learn):
        if self.writes:
            weights = learn.detector.state_dict().values()
            if not torch.stack([tensor.isfinite().all() for tensor in weights]).all():
                raise diverged(learn, f"weights that are no numbers at step {learn.steps}")
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
    """What a callback has to remember; those of miniai's own classes have nothing."""
    return callback.memory() if hasattr(callback, "memory") else {}


def restore(learn, state: dict, path: Path) -> tuple[int, int]:
    """Put a snapshot back into the learner and its callbacks. Returns the epoch and the steps done in it.

    Raises InputError if it does not fit: older versions had other names.
    """
    try:
        learn.detector.load_state_dict(state["detector"])
        learn.opt.load_state_dict(state["optimiser"])
        learn.steps = state["steps"]
        for callback in learn.cbs:
            if memory := state["memories"].get(type(callback).__name__):
                callback.recall(memory)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = plain_text(error)[:100]
        raise InputError(
            f"{path}: from another version of this project: remove it to begin anew, or choose another folder to write "
            f"to ({reason})"
        ) from error
    return state["epoch"], state["inside"]


def read_checkpoint(path: Path, settings: dict, device: torch.device) -> dict:
    """A snapshot from a file. Raises InputError if it is none, or its settings differ (one that it lacks, does not)."""
    try:
        state = torch.load(path, weights_only=True, map_location=device)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        reason = plain_text(error)[:100]
        raise InputError(f"{path}: not a checkpoint, or damaged: remove it to begin anew ({reason})") from error
    if not isinstance(state, dict) or not CONTENT <= state.keys():
        raise InputError(f"{path}: not a checkpoint of this project: choose another folder to write to")
    before = state["settings"]
    differing = [
        f"{name} {reprlib.repr(before[name])}, now {reprlib.repr(value)}"
        for name, value in settings.items()
        if before.get(name, value) != value
    ]
    if differing:
        raise InputError(
            f"{path}: from a run with other settings ({'; '.join(differing)}): repeat those, or choose another folder "
            "to write to"
        )
    return state
