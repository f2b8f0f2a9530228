"""Numbers of 16 bits where a GPU is faster with them, and the end of a training whose numbers outgrow every type."""

import math
from contextlib import ExitStack, nullcontext
from functools import partial

import torch

from odutils.callbacks import Callback
from odutils.errors import InputError


class MixedPrecision(Callback):
    """Run the network in 16 bits where the graphics card is faster at that; elsewhere change nothing.

    bfloat16 has the range of float32, so small gradients do not vanish. Cards before Ampere (Colab's T4) only imitate
    it, slowly; they get float16 and a GradScaler, which scales the loss up so that small gradients survive, and skips a
    step whose gradient becomes infinite. The loss is always computed in float32.
    """

    order = 10

    def __init__(self, dtype: torch.dtype | None = None):
        """dtype: torch.bfloat16 or torch.float16; by default what suits the device."""
        self.dtype = dtype

    def before_fit(self, learn):
        self.stack = ExitStack()
        device = learn.detector.mean.device.type
        dtype = self.dtype or half_precision(device)
        self.enabled = dtype is not None
        self.autocast = partial(torch.autocast, device, dtype=dtype) if self.enabled else nullcontext
        learn.scaler = self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def before_batch(self, learn):
        self.stack.enter_context(self.autocast())

    def after_predict(self, learn):
        self.stack.close()

    def after_backward(self, learn):
        self.scaler.unscale_(learn.opt)  # before ClipGradients (20) measures the gradient

    def cleanup_batch(self, learn):
        self.stack.close()  # once more does no harm, and a network that raises must not leave it open

    def memory(self) -> dict:
        return self.scaler.state_dict()  # empty unless it is enabled

    def recall(self, memory: dict) -> None:
        self.scaler.load_state_dict(memory)


def half_precision(device: str) -> torch.dtype | None:
    """The 16-bit type that a kind of device computes in faster than in float32; None if there is none."""
    if device != "cuda":
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


class StopIfDiverged(Callback):
    """Ends the training with an InputError once the loss or the gradient is no number, before anything is saved.

    To look at a number on a GPU is to wait for it. So the numbers are kept, and looked at every `every` steps and after
    each epoch; on the CPU at every step.
    """

    order = 22  # after Share and ClipGradients have written them; before LogLosses, SaveBest and Resume save

    def __init__(self, every: int = 20):
        self.every = every

    def before_epoch(self, learn):
        self.unseen = []  # (step, loss, length of the gradient)

    def after_batch(self, learn):
        loss = learn.loss.detach()
        # A scaler skips the steps whose gradient is infinite in float16: that is how it finds its scale.
        gradient = learn.gradient_norm if learn.training and not learn.scaler.is_enabled() else torch.zeros_like(loss)
        self.unseen.append((learn.steps, loss, gradient))
        if len(self.unseen) == self.every or loss.device.type == "cpu":
            self.look(learn)

    def after_epoch(self, learn):
        self.look(learn)

    def look(self, learn):
        if self.unseen:
            numbers = torch.stack([torch.stack(numbers) for _, *numbers in self.unseen]).tolist()  # one copy, one wait
            for (step, _, _), (loss, gradient) in zip(self.unseen, numbers, strict=True):
                if not math.isfinite(loss + gradient):
                    raise diverged(learn, f"loss {loss:.4g}, gradient {gradient:.4g} at step {step}")
            self.unseen = []


def diverged(learn, what: str) -> InputError:
    """The error of a training whose numbers have grown beyond all bounds."""
    rate = max(group["lr"] for group in learn.opt.param_groups)
    return InputError(
        f"the training diverged: {what} of epoch {learn.epoch}, learning rate {rate:.2g}; what was saved before is "
        "untouched: begin again with a lower --lr or --backbone-lr, and another --out"
    )
