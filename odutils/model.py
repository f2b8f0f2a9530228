"""The network: a backbone that computes feature maps, and a head that makes one prediction per anchor.

uint8 images in, (class_logits, box_codes) out; `presets.py` puts the parts together. The neck, which exchanges
information between the feature maps, is part of the head. N images, A anchors, C classes.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from odutils.anchors import Grid
from odutils.errors import InputError
from odutils.imagenet import imagenet_lite
from odutils.points import PYRAMID_STRIDES
from odutils.settings import Settings

PRIOR = 0.01  # probability that an untrained anchor gives to each class (Lin et al. 2017, focal loss, section 3.3)
SHAPES = 45  # anchors of different shape in each cell of the preset `article`
GridOf = Callable[[int, int], Grid]  # height and width of the input -> its anchors or points


class Detector(nn.Module):
    """Backbone, head and anchors (or points) in one: the only model class.

    grid: gives the anchors or points of an input of any height and width.
    mean, std: three numbers each, in 0…255; they become buffers, so a weights file carries its own preprocessing.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, grid: GridOf, mean: list, std: list, settings: Settings):
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.grid_of = grid
        self.settings = settings
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (N, 3, H, W) uint8 RGB.   Returns class_logits (N, A, C) and box_codes (N, A, 4)."""
        pixels = (images.float() - self.mean) / self.std
        return self.head(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))

    def grid(self, height: int, width: int) -> Grid:
        """The anchors or points of an input of height × width px, on the detector's device."""
        return self.grid_of(height, width).to(self.mean.device)


def flatten_maps(maps: list[Tensor], per_cell: int) -> Tensor:
    """Maps (N, per_cell × values, H, W), fine to coarse -> (N, A, values): row by row, anchors of a cell together."""
    flat = [m.permute(0, 2, 3, 1).reshape(m.shape[0], -1, m.shape[1] // per_cell) for m in maps]  # (N, H W …, values)
    return torch.cat(flat, dim=1)  # (N, A, values)


def set_prior(layer: nn.Conv2d) -> None:
    """Start every class at probability PRIOR: else the loss of thousands of negatives dominates the first steps."""
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.constant_(layer.bias, -math.log((1 - PRIOR) / PRIOR))


# ---- article: ResNet34 and four shrinking maps


class ShrinkingStage(nn.Sequential):
    """3 × 3 convolution, ReLU, batch norm, dropout."""

    def __init__(self, channels_in: int, channels: int, stride: int, dropout: float):
        conv = nn.Conv2d(channels_in, channels, 3, stride=stride, padding=1)
        super().__init__(conv, nn.ReLU(), nn.BatchNorm2d(channels), nn.Dropout(dropout))


class ArticleHead(nn.Module):
    """Maps of 7, 4, 2 and 1 cells a side; two convolutions on each map predict classes and boxes, 45 anchors a cell."""

    def __init__(self, classes: int, dropout: float = 0.4):
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        inputs_and_strides = ((512, 1), (256, 2), (256, 2), (256, 2))
        self.stages = nn.ModuleList(
            ShrinkingStage(channels, 256, stride, dropout) for channels, stride in inputs_and_strides
        )
        self.class_outputs = nn.ModuleList(nn.Conv2d(256, SHAPES * classes, 3, padding=1) for _ in range(4))
        self.box_outputs = nn.ModuleList(nn.Conv2d(256, SHAPES * 4, 3, padding=1) for _ in range(4))
        for layer in self.class_outputs:
            set_prior(layer)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """features: (N, 512, 7, 7).   Returns class_logits (N, 3150, C), box_codes (N, 3150, 4)."""
        features = self.dropout(F.relu(features))
        maps = []
        for stage in self.stages:
            features = stage(features)  # (N, 256, 7, 7), then 4 × 4, 2 × 2, 1 × 1
            maps.append(features)
        classes = [output(m) for output, m in zip(self.class_outputs, maps, strict=True)]
        boxes = [output(m) for output, m in zip(self.box_outputs, maps, strict=True)]
        return flatten_maps(classes, SHAPES), flatten_maps(boxes, SHAPES)


def resnet34_backbone(pretrained: bool) -> nn.Module:
    """ResNet34 (torchvision) without its classifier, which fastai cuts off: (N, 3, 224, 224) -> (N, 512, 7, 7)."""
    from fastai.vision.learner import create_body
    from torchvision.models import ResNet34_Weights, resnet34

    try:
        backbone = resnet34(weights=ResNet34_Weights.IMAGENET1K_V1 if pretrained else None)
    except OSError as error:  # URLError is one: no way to the weights
        raise InputError(f"no way to ResNet34's ImageNet weights ({error}): pass pretrained=False") from None
    return create_body(backbone, pretrained=False)  # "body" is fastai's word for the backbone


# ---- pyramid: EfficientNet-Lite0, feature pyramid, towers shared by the levels


class LiteBackbone(nn.Module):
    """EfficientNet-Lite0 (timm): feature maps at strides 8, 16 and 32 with 40, 112 and 1,280 channels.

    The last map comes after the final 1 × 1 convolution, from whose channels a classifier reads ImageNet's classes.
    """

    channels = (40, 112, 1280)
    taken = (2, 4)  # blocks whose outputs are feature maps
    number = 0  # of the EfficientNet-Lite

    def __init__(self, pretrained: bool):
        super().__init__()
        import timm

        self.net = timm.create_model(f"tf_efficientnet_lite{self.number}", num_classes=0, global_pool="")
        if pretrained:
            self.net.load_state_dict(imagenet_lite(self.net.state_dict(), self.number))

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """pixels: (N, 3, H, W) normalised.   Returns maps (N, channels, H / stride, W / stride), fine to coarse."""
        features, maps = self.net.bn1(self.net.conv_stem(pixels)), []
        for index, block in enumerate(self.net.blocks):
            features = block(features)
            if index in self.taken:
                maps.append(features)
        return [*maps, self.net.bn2(self.net.conv_head(features))]

    def frozen_parts(self) -> list[nn.Module]:
        """The stem and three stages: their edges and textures need no training, which would be expensive here."""
        return [self.net.conv_stem, self.net.bn1, *self.net.blocks[:3]]


class SeparableConv(nn.Module):
    """Depthwise 3 × 3, pointwise 1 × 1, batch norm, SiLU. Levels share the convolutions; each has its own norm."""

    def __init__(self, channels: int, levels: int = 1, stride: int = 1):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(levels))

    def forward(self, features: Tensor, level: int = 0) -> Tensor:
        return F.silu(self.norms[level](self.pointwise(self.depthwise(features))))


class PyramidHead(nn.Module):
    """Neck (FPN, Lin et al. 2017; bottom-up path, PANet, Liu et al. 2018), then two towers shared by the levels."""

    finer = 0  # levels finer than stride 8 (fine.py): level -1 has the last norms, so that the others keep their names

    def __init__(self, channels_in: tuple[int, ...], classes: int, channels: int = 96, depth: int = 2):
        super().__init__()
        levels = len(PYRAMID_STRIDES) + self.finer
        self.laterals = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, channels, 1, bias=False), nn.BatchNorm2d(channels)) for c in channels_in
        )
        self.top_down = nn.ModuleList(SeparableConv(channels) for _ in channels_in[:-1])
        self.bottom_up = nn.ModuleList(SeparableConv(channels, stride=2) for _ in PYRAMID_STRIDES[1:])
        self.class_tower = nn.ModuleList(SeparableConv(channels, levels) for _ in range(depth))
        self.box_tower = nn.ModuleList(SeparableConv(channels, levels) for _ in range(depth))
        self.class_output = nn.Conv2d(channels, classes, 1)
        self.box_output = nn.Conv2d(channels, 4, 1)
        set_prior(self.class_output)
        nn.init.normal_(self.box_output.weight, std=0.01)
        nn.init.constant_(self.box_output.bias, 2.4)  # softplus: 2.5 cells to each side, the anchor itself

    def fuse(self, features: list[Tensor]) -> list[Tensor]:
        """The neck: three maps of the backbone -> four of `channels` channels, at strides 8, 16, 32 and 64."""
        maps = [lateral(f) for lateral, f in zip(self.laterals, features, strict=True)]
        for i in (1, 0):  # top-down: coarse maps tell the fine ones what an object is
            maps[i] = self.top_down[i](maps[i] + F.interpolate(maps[i + 1], size=maps[i].shape[2:]))
        for i in (1, 2):  # bottom-up: fine maps tell the coarse ones where its edges are
            maps[i] = maps[i] + self.bottom_up[i - 1](maps[i - 1])
        return [*maps, self.bottom_up[2](maps[2])]

    def forward(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """features: maps of the backbone.   Returns class_logits (N, A, C), box_codes (N, A, 4)."""
        classes, boxes = [], []
        for level, features_of_level in enumerate(self.fuse(features), start=-self.finer):
            class_features = box_features = features_of_level  # (N, 96, H / stride, W / stride)
            for class_layer, box_layer in zip(self.class_tower, self.box_tower, strict=True):
                class_features, box_features = class_layer(class_features, level), box_layer(box_features, level)
            classes.append(self.class_output(class_features))
            boxes.append(self.box_output(box_features))
        return flatten_maps(classes, 1), flatten_maps(boxes, 1)
