"""Training: miniai's Learner with the callbacks of callbacks.py, and `train`, which puts everything together."""

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from odutils import callbacks
from odutils.augmentation import Augment
from odutils.datasets import CocoDetections, EpochSampler, make_loader
from odutils.errors import InputError
from odutils.losses import DetectionLoss
from odutils.model import Detector
from odutils.presets import build, fill
from odutils.weights import load_weights


@dataclass
class Recipe:
    """What decides the result of a training run. The defaults are those of the shipped weights."""

    preset: str = "pyramid"
    size: int = 256  # px of the square input
    epochs: int = 12
    batch_size: int = 16  # of all processes together
    lr: float = 1.5e-3  # of the head
    body_lr: float = 2e-4
    weight_decay: float = 0.02
    warm_up: int = 200  # steps
    balance: float = 0.02  # see EpochSampler
    ema: float = 0.998
    seed: int = 0
    pretrained: bool = True  # begin with ImageNet's body
    freeze_body: bool = False  # train the head alone


def miniai():
    """miniai's learner module: the course's own where it is installed, else miniminiai, which republishes it.

    (The package called miniai on PyPI is another project and has no learner.)
    """
    try:
        from miniai import learner
    except ImportError:
        import miniminiai as learner
    return learner


def make_optimiser(detector: Detector, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW with a lower rate for the body, and no weight decay on norms and biases."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in detector.named_parameters():
        groups.setdefault((name.startswith("body."), parameter.ndim > 1), []).append(parameter)
    settings = []
    for (is_body, decays), parameters in groups.items():
        lr = recipe.body_lr if is_body else recipe.lr
        decay = recipe.weight_decay if decays else 0.0
        settings.append(dict(params=parameters, lr=lr, base_lr=lr, weight_decay=decay))
    return torch.optim.AdamW(settings, fused=True)


def make_learner(detector: Detector, dls, recipe: Recipe, loss: DetectionLoss, device, extra=()):
    """miniai's Learner for a detector, with the callbacks that every run needs and the `extra` ones."""
    learner = miniai()
    device = torch.device(device)
    detector.to(device)
    loss.grid = loss.grid.to(device)

    class Step(learner.TrainCB):
        """The batch's pictures go to the network, the rest to the loss; validation leaves out what wraps the detector."""

        def predict(self, learn):
            learn.preds = (learn.model if learn.training else learn.detector)(learn.batch[0])

    total = recipe.epochs * len(dls.train)
    cbs = [
        learner.DeviceCB(device),
        Step(),
        callbacks.FreezeBody(recipe.freeze_body),
        callbacks.Schedule(total, recipe.warm_up),
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
    """Train a detector on a folder in COCO's layout; start it again with the same arguments to go on after an interruption.

    weights: a file to begin with, instead of ImageNet's body.   checkpoint_every: steps.
    Writes checkpoint.pt, losses.csv, losses.png and best.safetensors into `out`; returns the path of the latter.
    Started by `accelerate launch`, several processes share every batch.
    Raises InputError if the data set or the weights cannot be used.
    """
    from accelerate import Accelerator

    recipe, out = recipe or Recipe(), Path(out)
    accelerator = Accelerator(cpu=device == "cpu")
    first, processes = accelerator.is_main_process, accelerator.num_processes
    batch_size, squash = recipe.batch_size // processes, recipe.preset == "article"
    train_set = CocoDetections(data, train_split, recipe.size, squash, augment=Augment(recipe.size, squash, recipe.seed))
    valid_set = CocoDetections(data, valid_split, recipe.size, squash, train_set.classes)
    torch.manual_seed(recipe.seed)
    detector = build(recipe.preset, train_set.classes, pretrained=recipe.pretrained and not weights)
    detector.settings["size"] = recipe.size
    if weights:
        fill(detector, load_weights(weights)[0], str(weights))
    sampler = EpochSampler(train_set, recipe.seed, recipe.balance, accelerator.process_index, processes)
    if len(sampler) < batch_size:
        raise InputError(f"{data}: {len(sampler)} pictures of split {train_split!r} do not fill a batch of {batch_size}")
    valid_loader = make_loader(valid_set, batch_size, workers=workers) if first else []
    dls = miniai().DataLoaders(make_loader(train_set, batch_size, sampler, workers), valid_loader)
    loss = DetectionLoss(detector.grid(recipe.size, recipe.size), "article" if recipe.preset == "article" else "quality")
    settings = {**asdict(recipe), "classes": list(train_set.classes), "images": len(train_set), "processes": processes}
    resume = callbacks.Resume(out / "checkpoint.pt", sampler, batch_size, settings, recipe.seed, checkpoint_every)
    resume.writes = first
    about = {"recipe": asdict(recipe), "trained_on": f"{len(train_set)} pictures of {Path(data).name}/{train_split}"}
    reports = [
        callbacks.CocoMetrics(valid_set),
        callbacks.LogLosses(out),
        callbacks.SaveBest(out / "best.safetensors", **about),
    ]
    extra = [resume, *(reports if first else []), *([callbacks.Progress()] if first and progress else [])]
    if processes > 1:
        extra.append(Share(accelerator))
    learn = make_learner(detector, dls, recipe, loss, accelerator.device, extra)
    learn.fit(recipe.epochs)
    return out / "best.safetensors"


class Share(callbacks.Callback):
    """Let the processes of `accelerate launch` work on one batch: mean gradients, and one normaliser for all of them.

    DistributedDataParallel takes the mean of the processes' gradients; dividing by the mean of their target sums makes it
    the gradient of the joint batch.
    """

    order = 5  # after FreezeBody: only parameters that learn are exchanged

    def __init__(self, accelerator):
        self.accelerator = accelerator

    def before_fit(self, learn):
        count = self.accelerator.num_processes
        learn.loss_func.normalise = lambda total: self.accelerator.reduce(total, "sum").clamp(min=1) / count
        learn.model = self.accelerator.prepare_model(learn.detector)
