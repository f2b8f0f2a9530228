"""Training: miniai's Learner with our callbacks, and `train`, which puts everything together."""

import warnings
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from odutils import callbacks, reports
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections, EpochSampler, make_loader
from odutils.errors import InputError
from odutils.losses import DetectionLoss
from odutils.model import Detector
from odutils.mosaic import WithMosaic
from odutils.presets import build, load_tensors
from odutils.recipe import Recipe
from odutils.resume import Resume
from odutils.weights import load_weights


def miniai():
    """miniai's learner module: the course's own where it is installed, else miniminiai, which republishes it.

    (The package called miniai on PyPI is another project and has no learner.)
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torcheval, which both import, is older than torch
        try:
            from miniai import learner
        except ImportError:
            import miniminiai as learner
    return learner


def make_optimiser(detector: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with a lower rate for `detector.backbone`, and no weight decay on norms and biases."""
    backbone = set(detector.backbone.parameters())
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for parameter in detector.parameters():
        groups.setdefault((parameter in backbone, parameter.ndim > 1), []).append(parameter)
    settings = []
    for (is_backbone, decays), parameters in groups.items():
        lr = recipe.backbone_lr if is_backbone else recipe.lr
        decay = recipe.weight_decay if decays else 0.0
        settings.append(dict(params=parameters, lr=lr, base_lr=lr, weight_decay=decay))
    return torch.optim.AdamW(settings, fused=True)


def make_learner(detector: Detector, dls, recipe: Recipe, loss: DetectionLoss, device="cpu", extra=()):
    """miniai's Learner for a detector, with the callbacks that every run needs and the `extra` ones.

    dls: has `train` and `valid`, two loaders of batches. `learn.fit(recipe.epochs)` trains.
    """
    learner = miniai()
    device = torch.device(device)
    detector.to(device)
    loss.grid = loss.grid.to(device)

    class Step(learner.TrainCB):
        """A batch's images go to the network, the rest to the loss; validation leaves out what wraps the detector."""

        def before_fit(self, learn):
            learn.steps, learn.resumed_inside_epoch = 0, False

        def before_epoch(self, learn):
            if learn.training:
                learn.row = {"epoch": learn.epoch}

        def predict(self, learn):
            learn.preds = (learn.model if learn.training else learn.detector)(learn.batch[0])

        def get_loss(self, learn):
            learn.loss = learn.loss_func(learn.preds, *learn.batch[1:])

        def after_step(self, learn):
            learn.steps += 1

    cbs = [
        learner.DeviceCB(device),
        Step(),
        *([callbacks.FreezeBackbone(recipe.freeze_backbone)] if recipe.pretrained or recipe.freeze_backbone else []),
        callbacks.Schedule(recipe.epochs * len(dls.train), recipe.warm_up),
        callbacks.MixedPrecision(),
        callbacks.ClipGradients(),
        callbacks.EMA(recipe.ema),
        *extra,
    ]
    learn = learner.Learner(detector, dls, loss, recipe.lr, cbs, lambda _, lr: make_optimiser(detector, recipe))
    learn.detector = detector
    return learn


def train(
    data: str | Path,
    out: str | Path,
    recipe: Recipe | None = None,
    train_split: str = "train",
    valid_split: str = "val",
    weights: str | Path | None = None,
    workers: int = 2,
    device: str | None = None,
    checkpoint_every: int = 200,
    progress: bool = True,
) -> Path:
    """Train a detector on a folder in COCO's layout; after an interruption, the same call goes on where it was.

    weights: a file to begin with, instead of ImageNet's backbone.   checkpoint_every: steps.
    Writes checkpoint.pt, losses.csv, losses.png and best.safetensors into `out`; returns the path of the latter.
    Started by `accelerate launch` or `torchrun`, several processes share every batch. A training that is complete does
    nothing more. Raises InputError if the recipe, the data set, the weights or the checkpoint cannot be used.
    """
    from accelerate import Accelerator, InitProcessGroupKwargs

    recipe, out = recipe or Recipe(), Path(out)
    # The first process alone validates, and the others wait: they may need more patience than their own ten minutes.
    patience = InitProcessGroupKwargs(timeout=timedelta(hours=9))
    # accelerate joins processes on the CPU only if it is told to; else each would train alone, unaware of the others.
    accelerated = torch.cuda.is_available() or torch.backends.mps.is_available()
    accelerator = Accelerator(cpu=device == "cpu" or not accelerated, kwargs_handlers=[patience])
    first, processes = accelerator.is_main_process, accelerator.num_processes
    recipe.check(processes)
    batch_size, article = recipe.batch_size // processes, recipe.preset == "article"
    augment = Augment(recipe.size, article, recipe.seed, recipe.crop)
    examples = partial(WithMosaic, share=recipe.mosaic) if recipe.mosaic else CocoDetections
    train_set = examples(data, train_split, recipe.size, article, augment=augment)
    valid_set = CocoDetections(data, valid_split, recipe.size, article, train_set.classes)
    torch.manual_seed(recipe.seed)
    detector = build(recipe.preset, train_set.classes, pretrained=recipe.pretrained and not weights)
    detector.settings = detector.settings._replace(size=recipe.size)
    if weights:
        load_tensors(detector, load_weights(weights)[0], str(weights))
    sampler = EpochSampler(train_set, recipe.seed, recipe.balance, accelerator.process_index, processes)
    if len(sampler) < batch_size:
        raise InputError(f"{data}: the {len(train_set)} images of {train_split!r} do not fill a batch: take a smaller")
    valid = make_loader(valid_set, batch_size, workers=workers) if first else []
    dls = SimpleNamespace(train=make_loader(train_set, batch_size, sampler, workers), valid=valid)
    loss = DetectionLoss(detector.grid(recipe.size, recipe.size), "article" if article else "quality")
    settings = {**asdict(recipe), "classes": list(train_set.classes), "images": len(train_set), "processes": processes}
    extra = [
        Resume(out / "checkpoint.pt", sampler, batch_size, settings, recipe.seed, checkpoint_every, writes=first),
        *([callbacks.Share(accelerator)] if processes > 1 else []),
    ]
    if first:
        trained_on = f"{len(train_set)} images of {Path(data).name}/{train_split}"
        best = reports.SaveBest(out / "best.safetensors", recipe=asdict(recipe), trained_on=trained_on)
        extra += [reports.CocoMetrics(valid_set), reports.LogLosses(out), best]
        extra += [reports.Progress()] if progress else []
    where = device if device and processes == 1 else accelerator.device
    make_learner(detector, dls, recipe, loss, where, extra=extra).fit(recipe.epochs)
    accelerator.wait_for_everyone()
    return out / "best.safetensors"
