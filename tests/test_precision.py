"""Protects the numbers of a training: 16 bits only where they are faster, float16 without lost or spoiled steps, and an
end with one sentence, and nothing saved, once they are no numbers any more."""

import math
from types import SimpleNamespace

import pytest
import torch
from trainings import attach, find, learner, small_training

from odutils.callbacks import Callback
from odutils.errors import InputError
from odutils.precision import MixedPrecision, StopIfDiverged, half_precision
from odutils.weights import load_weights


def test_mixed_precision_changes_nothing_on_the_cpu():
    precision = MixedPrecision()
    learn = SimpleNamespace(detector=SimpleNamespace(mean=torch.zeros(1)))
    precision.before_fit(learn)
    assert not precision.enabled and not learn.scaler.is_enabled()
    precision.before_batch(learn)
    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32


def test_mixed_precision_is_left_after_an_error():
    precision = MixedPrecision(torch.bfloat16)
    learn = SimpleNamespace(detector=SimpleNamespace(mean=torch.zeros(1)))
    precision.before_fit(learn)
    precision.before_batch(learn)
    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.bfloat16
    precision.cleanup_batch(learn)  # the network has raised
    assert not torch.is_autocast_enabled("cpu")
    assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float32


@pytest.mark.parametrize("real, kind", [(True, torch.bfloat16), (False, torch.float16)])
def test_a_card_that_only_imitates_bfloat16_gets_float16(monkeypatch, real, kind):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or real)
    assert half_precision("cuda") == kind
    assert half_precision("cpu") is None and half_precision("mps") is None


class Overflow(Callback):
    """An infinite gradient at one step, as float16 makes it where the scale is too large."""

    order = 5  # before MixedPrecision takes the scale away

    def __init__(self, at: int):
        self.at, self.weights, self.rates = at, [], []

    def after_backward(self, learn):
        if learn.steps == self.at:
            learn.detector.head.class_output.weight.grad[0] = math.inf

    def after_batch(self, learn):
        if learn.training:
            self.weights.append(learn.detector.head.class_output.weight.detach().clone())
            self.rates.append(learn.opt.param_groups[0]["lr"])


class Float16(MixedPrecision):
    """float16 on the CPU, with a scale that these random batches can bear from the start."""

    def before_fit(self, learn):
        self.dtype = torch.float16
        super().before_fit(learn)
        learn.scaler = self.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)


def with_float16(*extra, **recipe):
    learn = learner(*extra, epochs=1, pretrained=False, **recipe)
    learn.cbs = [Float16() if type(callback) is MixedPrecision else callback for callback in learn.cbs]
    return learn


def test_float16_skips_a_step_with_an_infinite_gradient_and_keeps_count():
    watch = Overflow(at=1)
    learn = with_float16(watch, steps=4, warm_up=0)
    learn.fit(1)
    first, second, third, _ = watch.weights
    assert torch.equal(first, second) and not torch.equal(second, third)
    assert learn.steps == 4 and learn.scaler.get_scale() == 128  # half of what it was
    assert len(set(watch.rates)) == 4  # the schedule goes on
    assert all(torch.isfinite(weights).all() for weights in watch.weights)


def test_float16_learns_what_float32_learns():
    """The scale leaves no trace: the first step's gradient is that of float32 but for rounding."""
    gradients = []

    class Keep(Callback):
        order = 30

        def after_backward(self, learn):
            gradients.append(torch.cat([p.grad.flatten() for p in learn.detector.head.parameters()]))

    with_float16(Keep(), steps=1, valid=0).fit(1, valid=False)
    learner(Keep(), steps=1, valid=0, epochs=1, pretrained=False).fit(1, valid=False)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99
    assert gradients[0].norm() == pytest.approx(float(gradients[1].norm()), rel=0.1)


def test_the_scale_survives_an_interruption():
    first, second = with_float16(Overflow(at=1), steps=2), with_float16(steps=1)
    first.fit(1)
    second.cbs.append(Recall(find(first, MixedPrecision).memory()))
    second.fit(1)
    assert second.scaler.get_scale() == first.scaler.get_scale() == 128


class Recall(Callback):
    """Gives MixedPrecision a memory, as Resume does."""

    order = 40

    def __init__(self, memory: dict):
        self.given = memory

    def before_fit(self, learn):
        find(learn, MixedPrecision).recall(self.given)


# ---- StopIfDiverged


class Spoil(Callback):
    """From a step on the loss, or at a step the gradient, is no number."""

    order = 18  # before ClipGradients and StopIfDiverged see it

    def __init__(self, at: int, what: str = "loss"):
        self.at, self.what = at, what

    def after_loss(self, learn):
        if learn.training and learn.steps >= self.at and self.what == "loss":
            learn.loss = learn.loss * math.nan

    def after_backward(self, learn):
        if learn.steps == self.at and self.what == "gradient":
            learn.detector.head.class_output.bias.grad[0] = math.inf


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_training_that_diverges_is_stopped_with_a_sentence(what):
    learn = learner(Spoil(2, what), steps=4, epochs=2, pretrained=False)
    with pytest.raises(InputError, match=r"diverged: loss .*, gradient .* at step 3 of epoch 0, learning rate .*--lr"):
        learn.fit(2)
    assert learn.steps == 3


def test_a_gpu_is_asked_only_now_and_then(monkeypatch):
    """As on a GPU, where to look at a number is to wait for it: 20 steps a look, and one after each epoch."""
    looks = []
    look = StopIfDiverged.look
    monkeypatch.setattr(StopIfDiverged, "look", lambda self, learn: looks.append(learn.steps) or look(self, learn))
    stop = StopIfDiverged(every=4)
    loss = SimpleNamespace(detach=lambda: torch.ones(()).as_subclass(OnGPU))
    learn = SimpleNamespace(training=True, loss=loss, gradient_norm=torch.ones(()), steps=0)
    learn.scaler = SimpleNamespace(is_enabled=lambda: False)
    stop.before_epoch(learn)
    for learn.steps in range(1, 11):
        stop.after_batch(learn)
    stop.after_epoch(learn)
    assert looks == [4, 8, 10]


class OnGPU(torch.Tensor):
    """A number that says it is on a GPU."""

    @property
    def device(self):
        return SimpleNamespace(type="cuda")


@pytest.mark.parametrize("step, epoch", [(5, 1), (30, 9)])
def test_a_run_that_diverges_keeps_what_was_good(quick, sample, tmp_path, run, monkeypatch, step, epoch):
    """As at `--lr 5`: three steps an epoch, checkpoints every two; one step has no loss."""
    attach(monkeypatch, Spoil(step - 1))
    code, _, (line,) = run(sample, tmp_path, "--epochs", 11, "--checkpoint-every", 2, "--device", "cpu")
    assert code == 2 and f"diverged: loss nan, gradient nan at step {step} of epoch {epoch}" in line and "--lr" in line
    assert load_weights(tmp_path / "best.safetensors")[1]["epoch"] == epoch - 1
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    assert state["steps"] == (step - 1) // 2 * 2 and all(
        tensor.isfinite().all() for tensor in state["detector"].values()
    )


def test_a_checkpoint_never_holds_weights_that_are_no_numbers(quick, sample, tmp_path, monkeypatch):
    """Whatever looks at the loss only now and then."""
    attach(monkeypatch, Spoil(2), without=StopIfDiverged)
    with pytest.raises(InputError, match="the training diverged: weights that are no numbers at step 3"):
        small_training(sample, tmp_path)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["steps"] == 2


def test_a_rate_far_too_high_ends_with_a_sentence(sample, tmp_path, run):
    code, _, lines = run(sample, tmp_path, "--epochs", 1, "--lr", 99, "--no-pretrained", "--device", "cpu")
    assert code == 2 and len(lines) == 1 and "the training diverged: loss " in lines[0]
    assert not (tmp_path / "best.safetensors").exists()
