"""The article's own weights: its parameter names, its 81 class columns, and its order of anchors.

Its state dict is that of `nn.Sequential(backbone, head)`; column 0 of its class outputs is the background, which its
loss never uses. This module only reads that file: the preset `article` has neither the column nor the order.
"""

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from odutils.anchors import ARTICLE_LEVELS, AnchorGrid, article_grid
from odutils.model import SHAPES

PARTS = {  # beginning of a name in the article -> in the preset; {} is the number of the feature map
    "1.sconv{}.conv.": "head.stages.{}.0.",
    "1.sconv{}.bn.": "head.stages.{}.2.",
    "1.out{}.oconv1.": "head.class_outputs.{}.",
    "1.out{}.oconv2.": "head.box_outputs.{}.",
}


def is_published(tensors: dict[str, Tensor]) -> bool:
    """Whether a state dict has the article's names."""
    return {"0.0.weight", "1.sconv0.conv.weight", "1.out0.oconv1.weight"} <= tensors.keys()


def translate(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The article's state dict under the names of the preset `article`, without the column of the background.

    Output channels are shape × columns + column in both. Names that the article does not have stay as they are.
    """
    translated = {}
    for name, tensor in tensors.items():
        if name.startswith("1.out") and ".oconv1." in name and len(tensor) % SHAPES == 0:
            tensor = tensor.unflatten(0, (SHAPES, -1))[:, 1:].flatten(0, 1)  # (45 × 80, …)
        translated[_name_of(name)] = tensor
    return translated


def _name_of(name: str) -> str:
    if name.startswith("0."):
        return "backbone." + name.removeprefix("0.")
    for level in range(len(ARTICLE_LEVELS)):
        for theirs, ours in PARTS.items():
            if name.startswith(theirs.format(level)):
                return ours.format(level) + name.removeprefix(theirs.format(level))
    return name


@lru_cache
@torch.inference_mode(False)  # a cached grid may be needed for training, too
def published_grid(height: int = 224, width: int = 224) -> AnchorGrid:
    """The article's anchors in its own order: it lists cells, and the nine whole shapes of a cell, column by column.

    Its network predicts row by row, so off the diagonal a prediction belongs to an anchor elsewhere in the image; its
    weights were trained that way. The 7 × 7 cells are 1/8 apart.   height, width: ignored, as in `article_grid`.
    """
    grid = article_grid(to_the_edge=False)
    whole = torch.arange(9).view(3, 3).T.flatten()
    shapes = torch.cat([whole, torch.arange(9, SHAPES)])  # (45,)
    order = []
    first = 0
    for cells, _ in ARTICLE_LEVELS:
        cell = torch.arange(cells**2).view(cells, cells).T.reshape(-1, 1)  # (cells², 1)
        order.append(first + (cell * SHAPES + shapes).flatten())  # (cells² × 45,)
        first += cells**2 * SHAPES
    return replace(grid.pick(torch.cat(order)), counts=grid.counts)
