"""What decides the result of a training run; light, so that the command line can show it without importing torch."""

import math
from dataclasses import dataclass

from odutils.errors import InputError
from odutils.settings import FINEST_STRIDES

ARTICLE_SIZE = 224  # px of the preset `article`, fixed by its anchors


@dataclass
class Recipe:
    """What decides the result of a training run. What the shipped weights used stands in data/weights/README.md."""

    preset: str = "pyramid"
    size: int = 256  # px of the square input
    finest_stride: int = 8  # of the feature pyramid; 4 adds a level for small objects
    epochs: int = 12
    stop_after: int | None = None  # epochs; the schedule is laid out for `epochs` all the same
    patience: int | None = None  # stop after so many epochs in a row without a better validation; see StopEarly
    batch_size: int = 16  # of all processes together
    lr: float = 1.5e-3  # of the head
    backbone_lr: float = 2e-4
    weight_decay: float = 0.02
    warm_up: int = 200  # steps
    balance: float = 0.02  # see EpochSampler
    crop: bool = True  # crop and zoom out; see Augment
    mosaic: float = 0.0  # share of the examples that are four images in one; see WithMosaic
    ema: float = 0.998
    seed: int = 0
    pretrained: bool = True  # begin with ImageNet's backbone, and keep its first layers and its batch norm as they are
    freeze_backbone: bool = False  # train only the neck and the head

    def check(self, processes: int = 1) -> None:
        """Raises InputError for numbers that cannot work."""
        if self.preset == "article" and self.size != ARTICLE_SIZE:
            raise InputError(f"size {self.size}: the preset 'article' has anchors for {ARTICLE_SIZE} px: choose that")
        if type(self.finest_stride) is not int or self.finest_stride not in FINEST_STRIDES:
            raise InputError(f"finest_stride {self.finest_stride}: choose 8 or 4")
        if self.preset == "article" and self.finest_stride != 8:
            raise InputError("finest_stride 4: the preset 'article' has no feature pyramid: leave it out")
        if self.size < 64 or self.size % 32:
            raise InputError(f"size {self.size}: choose a multiple of 32 px, 64 or more")
        if self.batch_size < 1 or self.batch_size % processes:
            raise InputError(f"batch size {self.batch_size}: cannot be shared evenly by {processes} process(es)")
        if self.epochs < 1:
            raise InputError(f"epochs {self.epochs}: train for one at least")
        if self.stop_after is not None and not 1 <= self.stop_after <= self.epochs:
            raise InputError(f"stop_after {self.stop_after}: choose from 1 to {self.epochs}, the number of epochs")
        if self.patience is not None and self.patience < 1:
            raise InputError(f"patience {self.patience}: wait for one epoch at least")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr {self.lr}: the learning rate must be above 0")
        for name in ("backbone_lr", "weight_decay", "warm_up", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} {getattr(self, name)}: must be 0 or more")
        for name in ("balance", "mosaic", "ema"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} {getattr(self, name)}: must be from 0 to 1")
