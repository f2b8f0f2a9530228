"""Protects the use of the article's own weights: same image, same boxes, same probabilities as its code gives."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from odutils.article_weights import published_grid
from odutils.errors import InputError
from odutils.inference import Predictor
from odutils.presets import build, load_detector, save_detector

COLUMNS = 81  # background first


class PublishedHead(nn.Module):
    """The article's head under the article's names, for as much as its state dict and its answers need."""

    def __init__(self):
        super().__init__()
        for i in range(4):
            stage, out = nn.Module(), nn.Module()
            stage.conv = nn.Conv2d(256 if i else 512, 256, 3, 2 if i else 1, 1)
            stage.bn = nn.BatchNorm2d(256)
            out.oconv1, out.oconv2 = nn.Conv2d(256, 45 * COLUMNS, 3, padding=1), nn.Conv2d(256, 45 * 4, 3, padding=1)
            setattr(self, f"sconv{i}", stage)
            setattr(self, f"out{i}", out)

    def forward(self, features):
        features, classes, boxes = F.relu(features), [], []
        for i in range(4):
            stage, out = getattr(self, f"sconv{i}"), getattr(self, f"out{i}")
            features = stage.bn(F.relu(stage.conv(features)))
            for conv, values, answers in ((out.oconv1, COLUMNS, classes), (out.oconv2, 4, boxes)):
                answer = conv(features)[0]  # (45 × values, rows, columns)
                for row in range(answer.shape[1]):
                    for column in range(answer.shape[2]):
                        answers.append(answer[:, row, column].view(45, values))
        return torch.cat(classes), torch.cat(boxes)


def published_anchors():
    """The article's anchors in its words: cells with x outside and y inside, y first in the whole shapes' corners."""
    anchors = []
    for cells, size in ((7, 1 / 8), (4, 1 / 4), (2, 1 / 2), (1, 1.0)):
        for x in range(cells):
            for y in range(cells):
                thirds, sixths = (-1 / 3, 0, 1 / 3), [-1 / 6 + k / 6 for k in range(6)]
                shapes = [(b, a, b + 1, a + 1) for b in thirds for a in thirds]
                shapes += [(a, b, a + 1, b + 0.5) for b in sixths for a in thirds]
                shapes += [(a, b, a + 0.5, b + 1) for b in thirds for a in sixths]
                anchors += [
                    [min(max(v * size + o * size, 0), 1) for v, o in zip(s, (x, y) * 2, strict=True)] for s in shapes
                ]
    return torch.tensor(anchors)


def published_boxes(codes):
    anchors, move = published_anchors(), codes.tanh() / 2
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, 2:] + anchors[:, :2]) / 2 + move[:, :2] * size
    size = size + move[:, 2:] * size
    return torch.cat([centre - size / 2, centre + size / 2], dim=1)


@pytest.fixture(scope="module")
def published():
    """The article's network with random weights and batch norms that do something."""
    torch.manual_seed(0)
    network = nn.Sequential(build("article").backbone, PublishedHead()).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network


@pytest.fixture(scope="module")
def weights_file(published, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / "ssd_resnet34_best.pth"
    torch.save(published.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def detector(weights_file):
    return load_detector(weights_file)


def test_published_grid_is_the_one_of_the_loops():
    grid = published_grid()
    torch.testing.assert_close(grid.boxes, published_anchors(), atol=1e-6, rtol=0)
    assert grid.counts == (2205, 720, 180, 45)


def test_same_boxes_and_probabilities_as_the_published_code(published, detector, draw_image):
    image = draw_image(224, 224)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        classes, codes = published((pixels - mean[:, None, None]) / std[:, None, None])
        logits, our_codes = detector(torch.from_numpy(image).permute(2, 0, 1)[None])
    assert logits.shape == (1, 3150, 80) and our_codes.shape == (1, 3150, 4)
    torch.testing.assert_close(logits[0].sigmoid(), classes[:, 1:].sigmoid(), atol=1e-3, rtol=0)
    boxes = detector.grid(224, 224).decode(our_codes[0])
    torch.testing.assert_close(boxes, published_boxes(codes), atol=1e-4, rtol=0)


def test_it_predicts_and_survives_being_saved_in_our_own_format(detector, draw_image, tmp_path):
    save_detector(tmp_path / "article.safetensors", detector)
    again = load_detector(tmp_path / "article.safetensors")
    assert again.settings.preset == "article" and len(again.settings.classes) == 80
    assert again.grid(224, 224).boxes.equal(published_grid().boxes)
    assert not build("article").grid(224, 224).boxes.equal(published_grid().boxes)
    found = Predictor(again)(draw_image(100, 150), threshold=0.01)
    assert found.boxes.shape[1] == 4 and (found.labels >= 1).all() and (found.labels <= 80).all()


def test_weights_of_another_number_of_classes_are_refused(published, tmp_path):
    state = published.state_dict()
    for i in range(4):
        for kind in ("weight", "bias"):
            state[f"1.out{i}.oconv1.{kind}"] = state[f"1.out{i}.oconv1.{kind}"][: 45 * 21]
    torch.save(state, tmp_path / "voc.pth")
    with pytest.raises(InputError, match=r"voc\.pth: not the weights of a 'article' detector of 80 classes"):
        load_detector(tmp_path / "voc.pth")


def test_our_own_tensors_without_metadata_are_refused_with_advice(tmp_path):
    detector = build("pyramid", classes=("cat",))
    torch.save(detector.state_dict(), tmp_path / "mine.pth")
    with pytest.raises(InputError, match=r"mine\.pth: only the tensors.*save_detector"):
        load_detector(tmp_path / "mine.pth")


def test_tensors_of_something_else_are_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="not a detector of this project"):
        load_detector(tmp_path / "other.pth")
