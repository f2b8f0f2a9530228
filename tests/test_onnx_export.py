"""Protects the exported detector: PyTorch's detections from a file that says all by itself how it is to be used."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from odutils.__main__ import main
from odutils.anchors import article_grid, pyramid_grid
from odutils.article_weights import published_grid
from odutils.errors import InputError
from odutils.files import DATA
from odutils.images import list_images, read_image
from odutils.inference import Predictor
from odutils.model import ArticleHead, Detector
from odutils.onnx_detector import OnnxDetector
from odutils.onnx_export import cells, export
from odutils.points import STRIDES_FROM
from odutils.presets import DEFAULT_WEIGHTS, load_detector
from odutils.selection import EVALUATED
from odutils.settings import Settings

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def detector():
    return load_detector(DEFAULT_WEIGHTS)


@pytest.fixture(scope="module")
def model(detector, tmp_path_factory):
    return export(detector, tmp_path_factory.mktemp("export") / "model.onnx")


@pytest.fixture(scope="module")
def predictors(detector, model):
    return Predictor(detector, "cpu"), Predictor.from_weights(model)


# ---- the same answers


def random_images(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1, 64, 64), (1, 320, 256), (3, 128, 320)])
def test_every_batch_and_shape_from_one_file(detector, model, shape):
    images = random_images(shape[0], 3, *shape[1:])
    logits, boxes = OnnxDetector(model)(images)
    with torch.inference_mode():
        expected, codes = detector(images)
    assert torch.allclose(logits, expected, atol=1e-3)
    assert torch.allclose(boxes, detector.grid(*shape[1:]).decode(codes).clamp(0, 1), atol=1e-4)


@pytest.mark.parametrize("strides", STRIDES_FROM.values())
@pytest.mark.parametrize("shape", [(64, 64), (320, 192), (128, 640)])
def test_cells_are_those_of_the_pyramid(shape, strides):
    grid, (centres, steps) = pyramid_grid(*shape, strides), cells(*shape, strides)
    assert torch.allclose(centres, grid.centres, atol=1e-6)
    assert torch.allclose(steps, grid.steps)


def assert_equal(found, expected, width):
    """The same labels in the same order; where two scores are equal up to rounding, they may stand in another order."""
    assert len(found.labels) == len(expected.labels)
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    rest = list(range(len(expected.labels)))
    for box, label, score in zip(*found, strict=True):
        fits = [
            i
            for i in rest
            if expected.labels[i] == label
            and abs(expected.scores[i] - score) < 1e-4
            and np.abs(expected.boxes[i] - box).max() < 1e-3 * width
        ]
        assert fits, f"no counterpart of {label} {score} {box}"
        rest.remove(fits[0])


def test_the_same_detections_on_photographs(predictors):
    eager, exported = predictors
    photographs, count = [read_image(path) for path in list_images(DATA / "photos")], 0
    for photograph in photographs:
        for threshold in (None, 0.2):
            expected = eager(photograph, **{"threshold": threshold} if threshold else {})
            found = exported(photograph, **{"threshold": threshold} if threshold else {})
            assert_equal(found, expected, max(photograph.shape))
            count += len(found.labels)
    assert count > 30
    together = exported.batch(photographs)  # several shapes, several of a shape
    for found, photograph in zip(together, photographs, strict=True):
        assert_equal(found, eager(photograph), max(photograph.shape))


def test_nearly_all_of_what_evaluation_keeps(predictors):
    """At its threshold rounding may tip a suppression now and then; two of a hundred may differ."""
    photograph = read_image(DATA / "photos" / "street.jpg")
    expected, found = (predictor(photograph, threshold=EVALUATED) for predictor in predictors)
    assert abs(len(found.labels) - len(expected.labels)) <= 2 and len(expected.labels) > 50
    assert len(set(found.scores.round(3)) & set(expected.scores.round(3))) > 0.9 * len(set(expected.scores.round(3)))


@pytest.mark.parametrize("grid", [article_grid, published_grid])
def test_the_articles_head_and_grids(grid, tmp_path):
    """Squashed input of one size, tanh coding, 45 anchors a cell; on a backbone small enough for a test."""
    torch.manual_seed(0)
    settings = Settings(preset="article", classes=("bolt", "nut"), size=224, squash=True)
    backbone = nn.Conv2d(3, 512, 32, stride=32)  # (N, 512, 7, 7)
    detector = Detector(backbone, ArticleHead(2), grid, [120.0] * 3, [60.0] * 3, settings).eval()
    exported = OnnxDetector(export(detector, tmp_path / "article.onnx"))
    images = random_images(2, 3, 224, 224)
    with torch.inference_mode():
        expected, codes = detector(images)
    logits, boxes = exported(images)
    assert logits.shape == (2, 3150, 2) and torch.allclose(logits, expected, atol=1e-3)
    assert torch.allclose(boxes, grid().decode(codes).clamp(0, 1), atol=1e-4)
    assert Predictor(exported, "cpu").classes == ("bolt", "nut")
    with pytest.raises(ValueError, match="224 px"):
        exported(random_images(1, 3, 256, 256))


def test_export_leaves_the_detector_as_it_was(detector, model):
    untouched = load_detector(DEFAULT_WEIGHTS)
    assert str(detector) == str(untouched) and not detector.training
    assert all(torch.equal(a, b) for a, b in zip(detector.parameters(), untouched.parameters(), strict=True))


def test_the_file_is_as_small_as_the_weights_and_as_exact(model):
    """Shipped weights are of half precision; so is the file, and nothing is rounded on the way."""
    assert model.stat().st_size < 1.05 * DEFAULT_WEIGHTS.stat().st_size
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(model).graph.initializer}
    assert sum(a.size for a in stored.values() if a.dtype == np.float32) < 1000


def test_what_half_precision_would_round_stays_as_it_is(tmp_path):
    torch.manual_seed(0)
    backbone = nn.Conv2d(3, 512, 32, stride=32)
    settings = Settings(preset="article", classes=("bolt",), size=224, squash=True)
    detector = Detector(backbone, ArticleHead(1), article_grid, [120.1] * 3, [60.0] * 3, settings).eval()
    stored = onnx.load(export(detector, tmp_path / "fresh.onnx")).graph.initializer
    (weight,) = (onnx.numpy_helper.to_array(t) for t in stored if t.name == "detector.backbone.weight")
    assert np.array_equal(weight, backbone.weight.detach().numpy())


# ---- what the file says of itself


def test_metadata_can_be_read_without_this_package(detector, model):
    loaded = onnx.load(model)
    onnx.checker.check_model(loaded, full_check=True)
    about = {one.key: json.loads(one.value) for one in loaded.metadata_props}
    assert about["classes"] == list(detector.settings.classes)
    assert (about["size"], about["squash"], about["threshold"]) == (416, False, 0.44)
    assert (about["grey"], about["multiple"]) == (114, 64)
    assert (about["same_class_iou"], about["any_class_iou"]) == (0.5, 0.7)
    assert "PIL's BILINEAR" in about["filter"]  # which the next test takes
    assert "uint8 RGB" in about["input"] and "longer side" in about["resize"] and "sigmoid" in about["output"]


def test_the_file_and_its_description_are_enough(model, predictors):
    """What a program with the file alone does: its own letterbox, no suppression."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    about = {key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items()}
    image = read_image(DATA / "photos" / "kitten.jpg")
    scale = about["size"] / max(image.shape)
    sides = [round(side * scale) for side in image.shape[1::-1]]
    small = np.asarray(Image.fromarray(image).resize(sides, Image.Resampling.BILINEAR))
    height, width = (-(-side // about["multiple"]) * about["multiple"] for side in small.shape[:2])
    images = np.full((1, 3, height, width), about["grey"], np.uint8)
    images[0, :, : small.shape[0], : small.shape[1]] = small.transpose(2, 0, 1)
    logits, boxes = session.run(["logits", "boxes"], {"images": images})
    scores = 1 / (1 + np.exp(-logits[0]))  # (A, C)
    anchor, column = np.unravel_index(scores.argmax(), scores.shape)
    expected = predictors[0](image)
    assert about["classes"][column] == predictors[0].classes[expected.labels[0] - 1] == "cat"
    assert abs(scores[anchor, column] - expected.scores[0]) < 1e-3
    in_image = boxes[0, anchor] * [width, height, width, height] / scale
    assert np.abs(in_image - expected.boxes[0]).max() < 0.005 * max(image.shape)


def test_the_command_and_detect(tmp_path, capsys):
    model, photograph = tmp_path / "new" / "model.onnx", DATA / "photos" / "kitten.jpg"
    assert main(["export", "--out", str(model), "--weights", str(DEFAULT_WEIGHTS)]) == 0
    assert f"--weights {model}" in capsys.readouterr().out
    shown = []
    for weights in (model, DEFAULT_WEIGHTS):
        assert main(["detect", str(photograph), "--weights", str(weights), "--out", str(tmp_path / "out")]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] and "cat" in shown[0]


# ---- bad input


@pytest.fixture
def complaint(capfd):
    """complaint(*arguments): the one line that a command which cannot be carried out says on stderr."""

    def check(*arguments):
        capfd.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        lines = capfd.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("odutils: "), lines
        return lines[0]

    return check


def test_missing_packages_and_wrong_names(monkeypatch, detector, model, tmp_path, complaint):
    assert ".onnx" in complaint("export", "--out", tmp_path / "model.txt")
    assert "no such weights" in complaint("export", "--out", tmp_path / "a.onnx", "--weights", tmp_path / "none")
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "pip install onnx" in complaint("export", "--out", tmp_path / "a.onnx")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    photograph = DATA / "photos" / "kitten.jpg"
    assert "pip install onnxruntime" in complaint("detect", photograph, "--weights", model, "--out", tmp_path / "out")
    assert not list(tmp_path.glob("*.onnx"))


def test_a_failed_export_leaves_what_was_there(monkeypatch, detector, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"before")

    def fail(*arguments, **options):
        raise RuntimeError("no")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(RuntimeError):
        export(detector, path)
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("keep", [0, 100, 1_000_000])
def test_damaged_files(model, tmp_path, keep):
    path = tmp_path / "bad.onnx"
    path.write_bytes(model.read_bytes()[:keep])
    with pytest.raises(InputError, match="bad.onnx"):
        Predictor.from_weights(path)


def test_an_onnx_file_of_something_else(tmp_path):
    path = tmp_path / "other.onnx"
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "other", [value], [result])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    with pytest.raises(InputError, match="not a detector of this project"):
        Predictor.from_weights(path)


def test_inputs_and_devices_that_do_not_fit(model):
    with pytest.raises(ValueError, match="multiples of 64"):
        OnnxDetector(model)(random_images(1, 3, 100, 128))
    with pytest.raises(InputError, match="on the CPU"):
        OnnxDetector(model).to(torch.device("cuda"))
    with pytest.raises(InputError, match="no such"):
        Predictor.from_weights("nowhere.onnx")
