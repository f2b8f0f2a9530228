"""The article's way: its own code as it stands, and our preset `article`; both on a frozen Lite0 backbone."""

from types import SimpleNamespace

import cv2
import numpy as np
import torch
from article_code import ArticleCode
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from entrants.course import MEAN, SIZE, STD, Course, Endless, Run, examples
from entrants.ours import our_run
from odutils import callbacks
from odutils.anchors import article_grid
from odutils.datasets import CocoDetections
from odutils.inference import Detections, Predictor
from odutils.losses import DetectionLoss
from odutils.model import ArticleHead, Detector, LiteBackbone, ShrinkingStage
from odutils.settings import Settings
from odutils.training import miniai

LR, BATCH = 1e-4, 32  # the article's; the rate stays as it is to the end


class CoarsestMap(LiteBackbone):
    """The Lite0 backbone's last map alone: (N, 3, 224, 224) -> (N, 1280, 7, 7)."""

    def forward(self, pixels: Tensor) -> Tensor:
        return super().forward(pixels)[-1]


class ForImageNetPixels(CoarsestMap):
    """The same for pixels that are normalised as the article does it."""

    def forward(self, pixels: Tensor) -> Tensor:
        mean, std = (pixels.new_tensor(v).view(3, 1, 1) * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
        pixels = (pixels * std + mean - MEAN[0]) / STD[0]
        return super().forward(pixels.contiguous(memory_format=torch.channels_last))


class ArticleExamples(Dataset):
    """The article's own data set behind our sampler's keys."""

    def __init__(self, examples):
        self.examples = examples

    def __getitem__(self, key: tuple[int, int]):
        return self.examples[key[1]]


class ArticlePredictor:
    """The article's own way from an image to detections, but for the score threshold, which is everybody's."""

    def __init__(self, code, model: nn.Module, device: str):
        self.code, self.model, self.device = code, model, device

    @torch.inference_mode()
    def batch(self, images: list[np.ndarray], threshold: float, class_agnostic: bool) -> list[Detections]:
        found = []
        for image in images:
            pixels = self.code.normalize(self.code.tfms.ToTensor()(cv2.resize(image, (SIZE, SIZE))))
            logits, codes = (part.cpu() for part in self.model(pixels[None].to(self.device)))
            scores, labels, boxes = self.code.nms(codes, logits, conf_thresh=threshold)
            best = scores.argsort(descending=True)
            boxes = boxes[best].float().numpy() * np.float32(image.shape[1::-1] * 2)  # (K, 4) in pixels
            found.append(Detections(boxes, labels[best].numpy(), scores[best].numpy()))
        return found


def article(course: Course) -> Run:
    reader, learner = ArticleCode(course.article), miniai()
    code, dataset = reader.code, ArticleExamples(reader.Examples(CocoDetections(course.data, course.split)))
    head = code.SSD_MultiHead()
    head.sconv0 = code.StdConv(1280, 256, stride=1, drop=code.drop)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
    model = nn.Sequential(ForImageNetPixels(pretrained=True), head)
    model.to(course.device, memory_format=torch.channels_last)
    code.freeze(model[0], True)
    sampler = Endless(len(dataset.examples), course.seed)
    loader = DataLoader(
        dataset, BATCH, sampler=sampler, num_workers=course.workers, collate_fn=code.collate_fn, drop_last=True
    )
    to_device = callbacks.ToDevice(torch.device(course.device))
    cbs = [callbacks.Steps(), to_device, learner.TrainCB(), course.budget(BATCH)]
    dls = SimpleNamespace(train=loader, valid=[])
    learn = learner.Learner(model, dls, code.ssd_loss, LR, cbs, torch.optim.AdamW)
    learn.detector = model
    predictor = ArticlePredictor(code, model, course.device)
    return Run(learn, predictor, sampler, BATCH, torch.zeros(1, 3, SIZE, SIZE, device=course.device))


def fixed_detector(classes: tuple[str, ...]) -> Detector:
    """Our preset `article` on the Lite0 backbone."""
    head = ArticleHead(len(classes))
    head.stages[0] = ShrinkingStage(1280, 256, 1, dropout=0.4)
    settings = Settings(preset="article", classes=classes, size=SIZE, squash=True)
    detector = Detector(CoarsestMap(pretrained=True), head, article_grid, MEAN, STD, settings)
    return detector.to(memory_format=torch.channels_last)


def fixed_article(course: Course) -> Run:
    dataset, learner = examples(course, squash=True), miniai()
    detector, sampler = fixed_detector(dataset.classes).to(course.device), Endless(len(dataset), course.seed)
    loss = DetectionLoss(article_grid(), "article").to(course.device)
    dls = SimpleNamespace(train=course.loader(dataset, BATCH, sampler), valid=[])
    to_device = callbacks.ToDevice(torch.device(course.device))
    frozen = callbacks.FreezeBackbone(whole=True)
    cbs = [callbacks.Steps(), to_device, learner.TrainCB(), frozen, course.budget(BATCH)]
    learn = learner.Learner(detector, dls, loss, LR, cbs, torch.optim.AdamW)
    learn.detector = detector
    return Run(learn, Predictor(detector, course.device), sampler, BATCH, course.image())


def article_by_our_recipe(course: Course) -> Run:
    """Head, anchors, matching and loss of the article; rates, schedule, average and trained backbone of `pyramid`."""
    dataset = examples(course, squash=True)
    return our_run(course, fixed_detector(dataset.classes), DetectionLoss(article_grid(), "article"), dataset)
