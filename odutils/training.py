"""Training: miniai's Learner with our callbacks, and `train`, which puts everything together."""

import warnings
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import nn

from odutils import callbacks, reports
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections, EpochSampler, make_loader
from odutils.devices import best_device
from odutils.errors import InputError, plural
from odutils.files import locked
from odutils.finetuning import fingerprint, make_detector
from odutils.losses import DetectionLoss
from odutils.model import Detector
from odutils.mosaic import WithMosaic
from odutils.precision import MixedPrecision, StopIfDiverged
from odutils.processes import Share, default_workers, is_first_process, join_processes, number_of_processes
from odutils.recipe import Recipe
from odutils.resume import Resume
from odutils.stopping import StopEarly

ENDS = ("stop_after", "patience")  # of a Recipe: they decide when a training ends; raise them, and it goes on


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
    devices = {parameter.device.type for parameter in detector.parameters()}
    return torch.optim.AdamW(settings, fused=devices <= {"cpu", "cuda"})  # a fused step is not written for others


def make_learner(detector: Detector, dls, recipe: Recipe, loss: DetectionLoss, device="cpu", extra=()):
    """miniai's Learner for a detector, with the callbacks that every run needs and the `extra` ones.

    dls: has `train` and `valid`, two loaders of batches. `learn.fit(recipe.epochs)` trains.
    """
    learner = miniai()
    device = torch.device(device)
    detector.to(device)
    loss.to(device)

    class DetectorStep(learner.TrainCB):
        """A batch's images go to the network, the rest to the loss; validation leaves out what wraps the detector."""

        def predict(self, learn):
            network = learn.model if learn.training else learn.detector
            learn.preds = network(learn.batch[0])

        def get_loss(self, learn):
            learn.loss = learn.loss_func(learn.preds, *learn.batch[1:])

        def backward(self, learn):
            learn.scaler.scale(learn.loss).backward()

        def step(self, learn):
            learn.scaler.step(learn.opt)  # unless the gradient is infinite in float16
            learn.scaler.update()

    cbs = [
        callbacks.Steps(),
        callbacks.ToDevice(device),
        DetectorStep(),
        *([callbacks.FreezeBackbone(recipe.freeze_backbone)] if recipe.pretrained or recipe.freeze_backbone else []),
        callbacks.Schedule(recipe.epochs * len(dls.train), recipe.warm_up),
        MixedPrecision(),
        callbacks.ClipGradients(),
        StopIfDiverged(),
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
    workers: int | None = None,
    device: str | None = None,
    checkpoint_every: int = 200,
    progress: bool = True,
) -> Path:
    """Train a detector on a folder in COCO's layout; after an interruption, the same call goes on where it was.

    weights: a file to begin with, of the same preset, instead of ImageNet's backbone; its classes may be others (see
    finetuning.py).   workers: processes that load images; default: by the machine's cores.   device: default: the best
    there is.   checkpoint_every: steps.   progress: print what is trained, a bar, and a line an epoch.
    Writes checkpoint.pt, losses.csv, losses.png and best.safetensors into `out`; returns the path of the latter.
    Started by `accelerate launch` or `torchrun`, several processes share every batch. A training that is complete, or
    that `patience` has stopped, does nothing more. Raises InputError if the recipe, the data set, the weights or the
    checkpoint cannot be used, `out` cannot be written to or is in use by another training, or the training diverges.
    """
    recipe = recipe or Recipe()
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: a file, not a folder: choose another place to write to")
    processes = number_of_processes()
    recipe.check(processes)
    accelerator = join_processes(device)
    where = accelerator.device if accelerator else best_device(device)
    first = is_first_process()
    workers = default_workers() if workers is None else workers

    train_set, valid_set = open_datasets(data, train_split, valid_split, recipe)
    process = accelerator.process_index if accelerator else 0
    sampler = EpochSampler(train_set, recipe.seed, recipe.balance, process, processes)
    batch_size = recipe.batch_size // processes
    if len(sampler) < batch_size:
        raise InputError(f"{data}: the {len(train_set)} images of {train_split!r} do not fill a batch: make it smaller")
    loader = partial(make_loader, batch_size=batch_size, workers=workers, pin_memory=where.type == "cuda")
    dls = SimpleNamespace(train=loader(train_set, sampler=sampler), valid=loader(valid_set) if first else [])

    detector, taken_over = make_detector(recipe, train_set.classes, weights)
    kind = "article" if recipe.preset == "article" else "quality"
    loss = DetectionLoss(detector.grid(recipe.size, recipe.size), kind)
    lasting = {name: value for name, value in asdict(recipe).items() if name not in ENDS}
    settings = {**lasting, "classes": list(train_set.classes), "images": len(train_set), "processes": processes}
    settings["weights"] = fingerprint(weights)
    checkpoint, best, stop = out / "checkpoint.pt", None, None
    extra = [Resume(checkpoint, sampler, batch_size, settings, recipe.seed, checkpoint_every, writes=first)]
    if accelerator:
        extra.append(Share(accelerator))
    if first:
        trained_on = f"{len(train_set)} images of {Path(data).name}/{train_split}"
        best = reports.SaveBest(out / "best.safetensors", recipe=asdict(recipe), trained_on=trained_on)
        extra += [reports.CocoMetrics(valid_set), reports.LogLosses(out), best]
        extra += [reports.Progress()] if progress else []
    if recipe.patience:
        extra.append(stop := StopEarly(recipe.patience, best, accelerator))
    with locked(out) if first else nullcontext():
        if first and progress:
            print(describe(train_set, valid_set, where, workers, processes), flush=True)
            if taken_over and not checkpoint.exists():
                print(taken_over, flush=True)
        make_learner(detector, dls, recipe, loss, where, extra).fit(recipe.stop_after or recipe.epochs)
        if accelerator:
            accelerator.wait_for_everyone()
    if progress and stop and stop.reason:
        print(stop.reason, flush=True)
    return out / "best.safetensors"


def open_datasets(data: str | Path, train_split: str, valid_split: str, recipe: Recipe) -> tuple:
    """The training set, augmented, and the validation set. Raises InputError if they cannot be used."""
    squash = recipe.preset == "article"
    augment = Augment(recipe.size, squash, recipe.seed, recipe.crop)
    examples = partial(WithMosaic, share=recipe.mosaic) if recipe.mosaic else CocoDetections
    train_set = examples(data, train_split, recipe.size, squash, augment=augment)
    if not train_set.object_count:
        raise InputError(f"{data}: no object to learn from in the {plural(len(train_set), 'image')} of {train_split!r}")
    return train_set, CocoDetections(data, valid_split, recipe.size, squash, train_set.classes)


def describe(train_set, valid_set, device: torch.device, workers: int, processes: int) -> str:
    """What a training was given and where it runs, for people."""
    classes = train_set.classes
    lines = [
        f"to learn from: {plural(len(train_set), 'image')} with {plural(train_set.object_count, 'object')}, "
        f"to validate on: {plural(len(valid_set), 'image')} with {plural(valid_set.object_count, 'object')}",
        f"classes ({len(classes)}): {', '.join(classes[:5])}{', …' if len(classes) > 5 else ''}",
        f"computed on {device}; images loaded by {plural(workers, 'worker') if workers else 'this process'}",
    ]
    if processes > 1 and device.type != "cuda":
        lines.append(f"{processes} processes share each batch; batch norm sees the share of each by itself")
    return "\n".join(lines)
