"""The peers' way: torchvision's models on our backbone, with our optimiser, augmentation and average of weights."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.ssdlite import SSDLiteHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.ops.misc import Conv2dNormActivation

from entrants.course import MEAN, SIZE, STD, Course, Endless, Pace, Run, examples, name_of
from odutils import callbacks
from odutils.datasets import CocoDetections
from odutils.images import fit
from odutils.inference import Detections, to_detections
from odutils.model import LiteBackbone
from odutils.selection import EVALUATED
from odutils.training import make_optimiser, miniai


class Backbone(nn.Module):
    """The Lite0 backbone and the layers between it and torchvision's head: pixels -> {name: map}."""

    def __init__(self, neck: nn.Module, out_channels):
        super().__init__()
        self.backbone, self.neck, self.out_channels = LiteBackbone(pretrained=True), neck, out_channels

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        return self.neck(self.backbone(pixels.contiguous(memory_format=torch.channels_last)))


class ExtraMaps(nn.Module):
    """The last two maps of the backbone and four smaller ones, as torchvision's SSDLite adds them to its own."""

    channels = (112, 1280, 512, 256, 256, 128)

    def __init__(self):
        super().__init__()
        norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
        block = partial(Conv2dNormActivation, norm_layer=norm, activation_layer=nn.ReLU6)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                block(wide, narrow // 2, kernel_size=1),
                block(narrow // 2, narrow // 2, kernel_size=3, stride=2, groups=narrow // 2),
                block(narrow // 2, narrow, kernel_size=1),
            )
            for wide, narrow in zip(self.channels[1:], self.channels[2:], strict=False)
        )

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        maps = list(features[1:])
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return {str(level): features for level, features in enumerate(maps)}


class Named(nn.Module):
    """Gives a list of maps the names that torchvision's feature pyramid wants."""

    def __init__(self, pyramid: nn.Module):
        super().__init__()
        self.pyramid = pyramid

    def forward(self, features: list[Tensor]) -> dict[str, Tensor]:
        return self.pyramid({str(level): f for level, f in enumerate(features)})


class Peer(nn.Module):
    """A torchvision detector as our callbacks see one."""

    def __init__(self, model: nn.Module, autocast: Callable):
        super().__init__()
        self.model = model
        # torchvision computes the loss inside of the network: only what comes before it may be in 16 bits
        for part in (model.backbone, model.head):
            part.forward = partial(precisely, part.forward, autocast)
        self.register_buffer("mean", torch.zeros(()), persistent=False)  # `Resume` asks for its device

    @property
    def backbone(self) -> nn.Module:
        return self.model.backbone.backbone

    def forward(self, images: Tensor, targets: list[dict] | None = None):
        """images: (N, 3, S, S) uint8.   Returns torchvision's losses, or its detections in pixels of the input."""
        return self.model(list(images.float() / 255), targets)


def precisely(forward: Callable, autocast: Callable, *inputs):
    """What comes out, in float32, when a part of the network computes in the precision of the training."""
    with autocast() if torch.is_grad_enabled() else nullcontext():
        outputs = forward(*inputs)
    return type(outputs)((name, output.float()) for name, output in outputs.items())


class PeerStep(callbacks.Callback):
    """Batches in torchvision's form. What is neither right nor wrong, and partial labels, are unknown to it."""

    def predict(self, learn):
        images, boxes, labels, _ = learn.batch
        learn.targets = [
            {"boxes": one[kind > 0] * SIZE, "labels": kind[kind > 0]} for one, kind in zip(boxes, labels, strict=True)
        ]
        learn.preds = learn.model(images, learn.targets)

    def get_loss(self, learn):
        learn.loss = sum(learn.preds.values())


class PeerPredictor:
    def __init__(self, peer: Peer, device: str):
        self.peer, self.device = peer, device

    @torch.inference_mode()
    def batch(self, images: list[np.ndarray], threshold: float, class_agnostic: bool) -> list[Detections]:
        fitted, placements = zip(*(fit(image, SIZE) for image in images), strict=True)
        answers = self.peer.eval()(torch.from_numpy(np.stack(fitted)).to(self.device).permute(0, 3, 1, 2))
        answers = [{name: value.cpu() for name, value in answer.items()} for answer in answers]
        return [
            to_detections(a["boxes"] / SIZE, a["labels"], a["scores"], placement, image.shape)
            for a, placement, image in zip(answers, placements, images, strict=True)
        ]


def peer_run(course: Course, dataset: CocoDetections, model: nn.Module) -> Run:
    learner, recipe, sampler = miniai(), course.recipe, Endless(len(dataset), course.seed)
    dtype, budget = course.precision(model).dtype, course.budget(recipe.batch_size)
    autocast = partial(torch.autocast, course.device, dtype=dtype) if dtype else nullcontext
    peer = Peer(model, autocast).to(course.device, memory_format=torch.channels_last)
    dls = SimpleNamespace(train=course.loader(dataset, recipe.batch_size, sampler), valid=[])

    class Step(PeerStep, learner.TrainCB):
        pass

    cbs = [
        callbacks.Steps(),
        callbacks.ToDevice(torch.device(course.device)),
        Step(),
        callbacks.FreezeBackbone(),
        Pace(budget),
        callbacks.ClipGradients(),
        callbacks.EMA(recipe.ema),
        budget,
    ]
    learn = learner.Learner(peer, dls, None, recipe.lr, cbs, lambda *_: make_optimiser(peer, recipe))
    learn.detector = peer
    return Run(learn, PeerPredictor(peer, course.device), sampler, recipe.batch_size, course.image(), name_of(dtype))


PIXELS = dict(image_mean=[m / 255 for m in MEAN], image_std=[s / 255 for s in STD], score_thresh=EVALUATED)


def ssdlite(course: Course) -> Run:
    # In bfloat16 on a CPU, a gradient of its smallest maps now and then is no number (torch 2.14): float32 there.
    course = course._replace(bfloat16=course.bfloat16 and course.device != "cpu")
    dataset, maps = examples(course), ExtraMaps()
    anchors = DefaultBoxGenerator([[2, 3]] * len(maps.channels), min_ratio=0.2, max_ratio=0.95)
    norm = partial(nn.BatchNorm2d, eps=0.001, momentum=0.03)
    columns = len(dataset.classes) + 1
    head = SSDLiteHead(list(maps.channels), anchors.num_anchors_per_location(), columns, norm)
    options = dict(nms_thresh=0.55, detections_per_img=300, topk_candidates=300)  # of torchvision's ssdlite320
    return peer_run(
        course, dataset, SSD(Backbone(maps, None), anchors, (SIZE, SIZE), columns, head=head, **options, **PIXELS)
    )


def fcos(course: Course) -> Run:
    dataset, width = examples(course), 96  # as wide as the towers of `pyramid`
    neck = FeaturePyramidNetwork(list(LiteBackbone.channels), width, extra_blocks=LastLevelP6P7(width, width))
    options = dict(min_size=SIZE, max_size=SIZE)
    model = FCOS(Backbone(Named(neck), width), len(dataset.classes) + 1, **options, **PIXELS)
    return peer_run(course, dataset, model)
