"""Several processes that train one detector: `accelerate launch` or `torchrun` starts them, one for each GPU."""

import os
from datetime import timedelta

import torch
from torch import Tensor, nn

from odutils.callbacks import NORMS, Callback


def number_of_processes() -> int:
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first_process() -> bool:
    """Whether this is the process that validates, writes and prints; also True where it is the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def default_workers() -> int:
    """How many processes should load this process's images: a core for each, at most 8 (each holds the data set)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    on_this_machine = int(os.environ.get("LOCAL_WORLD_SIZE", number_of_processes()))
    return max(1, min(8, cores // on_this_machine))


def join_processes(device: str | None = None):
    """accelerate's Accelerator, which knows the other processes and this one's device; None for a single process.

    What an Accelerator was told first, it keeps until the process ends. Without one each training chooses anew.
    """
    if number_of_processes() == 1:
        return None
    from accelerate import Accelerator, InitProcessGroupKwargs

    # The first process alone validates, and the others wait: they may need more patience than their own ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=9))
    # accelerate joins processes on the CPU only if it is told to; else each would train alone, unaware of the others.
    with_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return Accelerator(cpu=device == "cpu" or not with_gpu, kwargs_handlers=[patience])


class Share(Callback):
    """Let the processes that `accelerator` knows of work on one batch, each on its part, as one would on all of it.

    DistributedDataParallel takes the mean of the processes' gradients. The joint batch wants their sum, with one
    divisor for all (see DetectionLoss), so each loss counts as often as there are processes. Only the first process
    validates: there nothing may wait for the others.
    On the CPU batch norm, where it learns, takes its statistics from each process's part; on CUDA from the joint batch.
    """

    order = 15  # after FreezeBackbone: what needs no gradient is settled once the network is wrapped; before LogLosses

    def __init__(self, accelerator):
        self.accelerator = accelerator

    def before_fit(self, learn):
        if learn.model is learn.detector:  # and not wrapped by an earlier fit
            if self.accelerator.device.type == "cuda":
                synchronise_norms(learn.detector)
            learn.model = self.accelerator.prepare_model(learn.detector)

    def before_epoch(self, learn):
        if learn.training:
            self.accelerator.wait_for_everyone()  # none writes a checkpoint that another has yet to read
        learn.loss_func.reduce_total = self.add if learn.training else unchanged

    def add(self, total: Tensor) -> Tensor:
        """The sum of all processes' tensors."""
        return self.accelerator.reduce(total, "sum")

    def after_loss(self, learn):
        if learn.training:
            learn.loss = learn.loss * self.accelerator.num_processes

    def after_batch(self, learn):
        if learn.training:  # what is logged is the loss of the joint batch
            learn.loss_func.parts = self.add(learn.loss_func.parts)
            learn.loss = learn.loss_func.parts.sum()


def unchanged(total: Tensor) -> Tensor:
    return total


def synchronise_norms(detector: nn.Module) -> None:
    """Let each part's batch norm, if it learns, take mean and variance of all processes' images; CUDA only."""
    from timm.layers import convert_sync_batchnorm  # torch's would lose the activations of timm's norms

    for name, part in list(detector.named_children()):
        norms = [module for module in part.modules() if isinstance(module, NORMS)]
        if any(parameter.requires_grad for norm in norms for parameter in norm.parameters()):
            shared = convert_sync_batchnorm(part)
            setattr(detector, name, shared.train(part.training))  # old versions of timm forget it
