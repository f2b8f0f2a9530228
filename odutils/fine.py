"""A fifth, finer level for the feature pyramid: points at stride 4, for small objects.

FPN calls this level P2 (Lin et al. 2017). All layers that a pyramid without it has keep their names, so that the
weights of one begin a training of the other. N images, C classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from odutils.model import LiteBackbone, PyramidHead, SeparableConv
from odutils.points import PYRAMID_STRIDES

FINE_NORM = f".norms.{len(PYRAMID_STRIDES)}."  # in the names of the fifth level's tensors in the towers


class FineBackbone(LiteBackbone):
    """With the feature map at stride 4, too: it has 24 channels."""

    channels = (24, *LiteBackbone.channels)
    taken = (1, *LiteBackbone.taken)


class FineHead(PyramidHead):
    """A top-down step makes the fifth level from the one at stride 8; the bottom-up path begins at stride 8 as before.

    (It would cost four times as much there, and change every other level.)
    """

    finer = 1

    def __init__(self, channels_in: tuple[int, ...], classes: int, channels: int = 96, depth: int = 2):
        super().__init__(channels_in[1:], classes, channels, depth)
        self.fine_lateral = nn.Sequential(nn.Conv2d(channels_in[0], channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.fine_top_down = SeparableConv(channels)

    def fuse(self, features: list[Tensor]) -> list[Tensor]:
        """The neck: four maps of the backbone -> five of `channels` channels, at strides 4, 8, 16, 32 and 64."""
        maps, fine = super().fuse(features[1:]), self.fine_lateral(features[0])  # (N, 96, H / 4, W / 4)
        return [self.fine_top_down(fine + F.interpolate(maps[0], size=fine.shape[2:])), *maps]


def belongs_to_fine(name: str) -> bool:
    """Whether a tensor of a detector's state dict exists for the fifth level only."""
    return name.startswith("head.fine_") or FINE_NORM in name
