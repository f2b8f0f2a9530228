"""Protects the level at stride 4: its predictions stand in the order of its points, the other levels are those of a
pyramid without it, files say which one they hold, and the weights of one begin a training of the other."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from trainings import small_training

from odutils import training
from odutils.__main__ import main
from odutils.errors import InputError
from odutils.fine import belongs_to_fine
from odutils.finetuning import make_detector
from odutils.inference import Predictor
from odutils.matching import match_points
from odutils.onnx_detector import OnnxDetector
from odutils.onnx_export import export
from odutils.points import STRIDES_FROM, PointGrid, point_grid
from odutils.presets import PRESETS, build, load_detector, save_detector
from odutils.recipe import Recipe
from odutils.settings import FINEST_STRIDES
from odutils.weights import load_weights, save_weights

CLASSES = ("bolt", "nut")


def shaken(preset="pyramid", finest_stride=8, seed=1):
    """A detector in which every number that training may change is unlike an untrained one's."""
    torch.manual_seed(seed)
    detector = build(preset, CLASSES, finest_stride=finest_stride)
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                change = torch.rand(tensor.shape) if tensor.ndim == 1 else 0.005 * torch.randn(tensor.shape)
                tensor.copy_((tensor + change).half())  # which a file of half precision holds exactly
    return detector.eval()


@pytest.fixture(scope="module", params=["pyramid", "points"])
def fine(request):
    return shaken(request.param, 4)


@pytest.fixture(scope="module")
def plain():
    return shaken()


def random_images(height, width):
    return torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
@pytest.mark.parametrize("shape", [(64, 64), (128, 192)])
def test_one_prediction_for_each_point_of_five_levels(fine, shape):
    grid = fine.grid(*shape)
    logits, codes = fine(random_images(*shape))
    assert grid.counts == tuple(shape[0] * shape[1] // stride**2 for stride in (4, 8, 16, 32, 64))
    assert logits.shape == (1, len(grid), 2) and codes.shape == (1, len(grid), 4)


@torch.no_grad()
def test_the_finest_predictions_stand_row_by_row():
    """One bright cell changes the predictions of the 7 × 7 cells around it, which three 3 × 3 convolutions reach."""
    head = build("pyramid", CLASSES, finest_stride=4).head.eval()
    features = [torch.zeros(1, c, 128 // s, 192 // s) for c, s in zip((24, 40, 112, 1280), (4, 8, 16, 32), strict=True)]
    calm = head(features)[0]
    features[0][..., 5, 31] = 100  # row, column
    changed = (head(features)[0] - calm).abs().sum(dim=-1)[0]
    grid = build("pyramid", CLASSES, finest_stride=4).grid(128, 192)
    column, row = (grid.centres[: grid.counts[0]] * torch.tensor([192, 128]) / 4 - 0.5).round().int().unbind(dim=1)
    reached = ((column - 31).abs() <= 3) & ((row - 5).abs() <= 3)
    assert ((changed[: grid.counts[0]] > 0) == reached).all()
    assert (changed[grid.counts[0] :] == 0).all()  # the bottom-up path begins at stride 8
    features[0].zero_()
    features[1][..., 5, 15] = 100
    changed = (head(features)[0] - calm).abs().sum(dim=-1)[0]
    # One 3 × 3 convolution at stride 8 makes 6 × 6 cells of stride 4 of it; three at stride 4 add three on each side.
    reached = (column >= 25) & (column <= 36) & (row >= 5) & (row <= 16)
    assert ((changed[: grid.counts[0]] > 0) == reached).all()


@torch.no_grad()
def test_the_other_levels_are_those_of_the_pyramid(plain, tmp_path):
    save_detector(tmp_path / "plain.safetensors", plain)
    recipe = Recipe(size=64, pretrained=False, finest_stride=4)
    detector, told = make_detector(recipe, CLASSES, tmp_path / "plain.safetensors")
    assert told.endswith("all classes taken over by name (2); the level at stride 4 is new")
    assert detector.settings.finest_stride == 4
    images = random_images(128, 192)
    expected, found = plain(images), detector.eval()(images)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other[:, -one.shape[1] :], one)


def test_a_new_level_begins_with_the_tower_norms_of_stride_8(plain, tmp_path):
    save_detector(tmp_path / "plain.safetensors", plain)
    recipe = Recipe(preset="points", size=64, pretrained=False, finest_stride=4)
    detector, _ = make_detector(recipe, CLASSES, tmp_path / "plain.safetensors")
    for layer in (*detector.head.class_tower, *detector.head.box_tower):
        norms = [norm.state_dict() for norm in layer.norms]
        assert len(norms) == 5 and not norms[4]["weight"].equal(norms[1]["weight"])
        assert all(tensor.equal(norms[0][name]) for name, tensor in norms[4].items())


@torch.no_grad()
def test_a_pyramid_begins_with_the_weights_of_a_finer_one(fine, tmp_path):
    save_detector(tmp_path / "fine.safetensors", fine)
    detector, told = make_detector(Recipe(size=64, pretrained=False), CLASSES, tmp_path / "fine.safetensors")
    assert told.endswith("--finest-stride 4 keeps it") and detector.settings.finest_stride == 8
    images = random_images(64, 64)
    for one, other in zip(detector.eval()(images), fine(images), strict=True):
        torch.testing.assert_close(one, other[:, -one.shape[1] :])


def test_a_fine_pyramid_takes_over_all_of_another(fine, tmp_path):
    save_detector(tmp_path / "fine.safetensors", fine)
    recipe = Recipe(size=64, pretrained=False, finest_stride=4)
    detector, told = make_detector(recipe, CLASSES, tmp_path / "fine.safetensors")
    assert "stride" not in told
    before = fine.state_dict()
    assert all(tensor.equal(before[name]) for name, tensor in detector.state_dict().items())


@pytest.mark.parametrize(("before", "now"), [(8, 4), (4, 8)])
def test_classes_and_levels_may_change_at_once(before, now, tmp_path):
    old = shaken(finest_stride=before)
    save_detector(tmp_path / "a.safetensors", old)
    recipe = Recipe(size=64, pretrained=False, finest_stride=now)
    detector, told = make_detector(recipe, ("screw", "nut", "bolt"), tmp_path / "a.safetensors")
    assert "1 new: screw" in told
    assert detector.head.class_output.weight[[2, 1]].equal(old.head.class_output.weight)


def test_a_file_that_lacks_another_tensor_is_refused(plain, tmp_path):
    save_detector(tmp_path / "plain.safetensors", plain)
    tensors, metadata = load_weights(tmp_path / "plain.safetensors")
    del tensors["head.top_down.0.pointwise.weight"]
    save_weights(tmp_path / "damaged.safetensors", tensors, metadata)
    with pytest.raises(InputError, match="not the weights of a 'pyramid' detector"):
        make_detector(Recipe(size=64, finest_stride=4), CLASSES, tmp_path / "damaged.safetensors")


@torch.no_grad()
def test_a_file_says_which_pyramid_it_holds(fine, plain, tmp_path):
    for detector in (fine, plain):
        save_detector(tmp_path / "a.safetensors", detector)
        read, images = load_detector(tmp_path / "a.safetensors"), random_images(64, 64)
        assert read.settings == detector.settings
        assert all(one.equal(other) for one, other in zip(read(images), detector(images), strict=True))
        assert read.grid(64, 64).counts == detector.grid(64, 64).counts
        assert isinstance(read.grid(64, 64), PointGrid) == (detector.settings.preset == "points")


def test_a_file_from_before_the_option_has_stride_8(plain, tmp_path):
    save_detector(tmp_path / "a.safetensors", plain)
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert metadata.pop("finest_stride") == "8"
    save_file(tensors, tmp_path / "old.safetensors", metadata)
    assert load_detector(tmp_path / "old.safetensors").settings.finest_stride == 8
    save_file(tensors, tmp_path / "odd.safetensors", metadata | {"finest_stride": json.dumps(2)})
    with pytest.raises(InputError, match="odd.safetensors: .*finest_stride is 2"):
        load_detector(tmp_path / "odd.safetensors")


@pytest.mark.parametrize(
    ("preset", "stride", "advice"),
    [("article", 4, "choose 8"), ("own", 4, "choose 8"), ("pyramid", 2, "choose 8 or 4"), ("points", 16, "8 or 4")],
)
def test_what_does_not_exist_cannot_be_built(preset, stride, advice, monkeypatch):
    monkeypatch.setitem(PRESETS, "own", lambda classes, pretrained: build("pyramid", classes, pretrained))
    assert build("own", CLASSES).settings.finest_stride == 8
    with pytest.raises(InputError, match=f"preset '{preset}' has no finest_stride {stride}: .*{advice}$"):
        build(preset, CLASSES, finest_stride=stride)


def test_a_file_that_describes_no_preset_is_named(plain, tmp_path):
    save_detector(tmp_path / "a.safetensors", plain)
    tensors, metadata = load_weights(tmp_path / "a.safetensors")
    save_weights(tmp_path / "b.safetensors", tensors, metadata | {"preset": "article", "finest_stride": 4})
    with pytest.raises(InputError, match="b.safetensors: preset 'article' has no finest_stride 4"):
        load_detector(tmp_path / "b.safetensors")


@torch.no_grad()
def test_the_exported_file_gives_the_same_boxes(fine, tmp_path):
    pytest.importorskip("onnxruntime")
    path = export(fine, tmp_path / "fine.onnx")
    for shape in ((64, 64), (128, 192)):
        images = random_images(*shape)
        (logits, boxes), (expected, codes) = OnnxDetector(path)(images), fine(images)
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(boxes, fine.grid(*shape).decode(codes).clamp(0, 1), atol=1e-4, rtol=1e-4)
    image = np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8)
    found, expected = (one(image, threshold=0.0) for one in (Predictor.from_weights(path), Predictor(fine, "cpu")))
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)


def test_the_strides_that_the_light_modules_know_are_those_of_the_points():
    """settings.py repeats them, because it is read without torch."""
    assert set(FINEST_STRIDES) == set(STRIDES_FROM)
    assert all(strides[0] == finest for finest, strides in STRIDES_FROM.items())


def test_a_small_object_has_more_positives():
    """12 × 12 px around a point of stride 4: it contains nine of these points, but one of stride 8."""
    box, label = torch.tensor([[[56.0, 56, 68, 68]]]) / 128, torch.tensor([[1]])
    counts = {
        stride: match_points(point_grid(128, 128, strides), box, label) for stride, strides in STRIDES_FROM.items()
    }
    assert {stride: int((matches >= 0).sum()) for stride, matches in counts.items()} == {8: 1, 4: 9}


def test_the_command_passes_the_option_on(sample, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr(training, "train", lambda data, out, recipe, **_: given.append(recipe) or tmp_path / "best")
    assert main(["train", "--data", str(sample), "--out", str(tmp_path / "out"), "--finest-stride", "4"]) == 0
    assert [recipe.finest_stride for recipe in given] == [4]


def test_training_by_the_option(sample, tmp_path):
    path = small_training(sample, tmp_path / "out", epochs=1, preset="points", finest_stride=4)
    detector = load_detector(path)
    assert detector.settings.finest_stride == 4
    assert load_weights(path)[1]["recipe"]["finest_stride"] == 4
    recipe = Recipe(preset="points", size=64, pretrained=False, finest_stride=4)
    untrained = make_detector(recipe, detector.settings.classes)[0].state_dict()  # with the same seed
    same = [name for name, tensor in detector.state_dict().items() if tensor.equal(untrained[name].half().float())]
    assert not [name for name in same if belongs_to_fine(name) and name.endswith("weight")]
