"""Protects fine-tuning: all layers but the class output come from the file, the class output's rows by class name and
never by position, new classes begin as in a new detector, and weights that do not fit are refused in a sentence."""

import shutil

import pytest
import torch
from test_article_weights import PublishedHead
from torch import nn
from trainings import assert_same_result, attach, rows_of, small_training

from odutils.article_weights import published_grid
from odutils.callbacks import Callback
from odutils.classes import CLASSES
from odutils.errors import InputError
from odutils.finetuning import CLASS_OUTPUT, make_detector
from odutils.model import PRIOR, SHAPES
from odutils.points import PointGrid
from odutils.presets import PUBLISHED, build, load_detector, save_detector
from odutils.recipe import Recipe
from odutils.weights import load_weights, save_weights

BEFORE = ("person", "dog", "cup")
RECIPES = {
    "pyramid": Recipe(size=64, seed=7, pretrained=False),
    "article": Recipe(preset="article", size=224, seed=7, pretrained=False),
}


@pytest.fixture(scope="module", params=["pyramid", "article"])
def trained(request, tmp_path_factory):
    """The file of a detector of BEFORE, every number of which differs from an untrained one's: preset, path."""
    torch.manual_seed(1)
    detector = build(request.param, BEFORE)
    with torch.no_grad():
        for tensor in detector.state_dict().values():
            if tensor.is_floating_point():
                change = torch.rand(tensor.shape) if tensor.ndim == 1 else 0.005 * torch.randn(tensor.shape)
                tensor.copy_((tensor + change).half())  # which a file of half precision holds exactly
    path = tmp_path_factory.mktemp(request.param) / "before.safetensors"
    save_detector(path, detector)
    return request.param, path


@pytest.mark.parametrize("kind", ["article.safetensors", "article.pth"])
def test_published_weights_bring_their_anchors(published_file, tmp_path, kind):
    """Their predictions belong to anchors in the article's order: with ours they would be trained anew."""
    save_detector(tmp_path / "article.safetensors", load_detector(published_file))
    path = published_file if kind.endswith("pth") else tmp_path / kind
    published, (detector, told) = load_detector(path), make_detector(RECIPES["article"], ("helmet", "dog"), path)
    assert "dog taken over by name, 1 new: helmet" in told
    assert detector.grid(224, 224).boxes.equal(published_grid().boxes) and detector.settings.anchors == PUBLISHED
    image = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.no_grad():
        (logits, boxes), (before, boxes_before) = detector.eval()(image), published(image)
    torch.testing.assert_close(boxes, boxes_before)
    torch.testing.assert_close(logits[..., 1], before[..., CLASSES.index("dog")])
    with pytest.raises(InputError, match="weights of the preset 'article' cannot begin a training of 'pyramid'"):
        make_detector(RECIPES["pyramid"], ("dog",), path)


@pytest.fixture(scope="module")
def published_file(tmp_path_factory):
    """A file with the article's names and random numbers."""
    torch.manual_seed(2)
    path = tmp_path_factory.mktemp("published") / "article.pth"
    torch.save(nn.Sequential(build("article").backbone, PublishedHead()).state_dict(), path)
    return path


def rows(tensors, name, classes):
    """A tensor of the class output as {class: its rows (anchors, …)}; a cell's anchors come one after the other."""
    anchors = SHAPES if "class_outputs" in name else 1
    by_class = tensors[name].unflatten(0, (anchors, len(classes)))
    return {one: by_class[:, index] for index, one in enumerate(classes)}


@pytest.mark.parametrize(
    "classes",
    [("cup", "helmet", "person"), ("dog", "cup", "person"), BEFORE, ("helmet",), (*BEFORE, "helmet", "vest")],
    ids=["some", "permuted", "same", "none", "more"],
)
def test_rows_go_by_name_and_the_rest_is_taken_over(trained, classes):
    preset, path = trained
    old, fresh = load_weights(path)[0], make_detector(RECIPES[preset], classes)[0].state_dict()
    new = make_detector(RECIPES[preset], classes, path)[0].state_dict()
    outputs = [name for name in new if name.startswith(CLASS_OUTPUT)]
    assert len(outputs) == {"pyramid": 2, "article": 8}[preset]  # weight and bias
    for name in new.keys() - set(outputs):
        assert torch.equal(new[name], old[name]), name
    for name in outputs:
        before, after, untrained = rows(old, name, BEFORE), rows(new, name, classes), rows(fresh, name, classes)
        for one in classes:
            assert torch.equal(after[one], before[one] if one in BEFORE else untrained[one]), (name, one)


def test_a_new_class_begins_at_the_prior(trained):
    preset, path = trained
    new = make_detector(RECIPES[preset], ("helmet", "dog"), path)[0].state_dict()
    for name in (name for name in new if name.startswith(CLASS_OUTPUT)):
        of_helmet = rows(new, name, ("helmet", "dog"))["helmet"]
        if name.endswith("bias"):
            torch.testing.assert_close(of_helmet.sigmoid(), torch.full_like(of_helmet, PRIOR))
        else:
            assert 0.005 < of_helmet.std() < 0.02


def test_an_order_that_differs_gives_the_same_scores_by_name(trained):
    preset, path = trained
    classes, size = ("cup", "person", "dog"), 224 if preset == "article" else 64
    detector = make_detector(RECIPES[preset], classes, path)[0].eval()
    image = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    with torch.no_grad():
        (logits, boxes), (before, boxes_before) = detector(image), load_detector(path)(image)
    assert boxes.isfinite().all() and logits.std() > 0
    torch.testing.assert_close(boxes, boxes_before)
    torch.testing.assert_close(logits, before[..., [BEFORE.index(one) for one in classes]])


def test_pyramid_and_points_begin_with_each_others_weights(trained):
    """They share one network: only the label assignment of a training differs."""
    preset, path = trained
    if preset == "article":
        with pytest.raises(InputError, match="'article' cannot begin a training of 'points'"):
            make_detector(Recipe(preset="points", size=64, pretrained=False), BEFORE, path)
        return
    detector, told = make_detector(Recipe(preset="points", size=64, pretrained=False), BEFORE, path)
    assert detector.settings.preset == "points" and isinstance(detector.grid(64, 64), PointGrid)
    assert "all classes taken over" in told
    old = load_weights(path)[0]
    assert all(torch.equal(tensor, old[name]) for name, tensor in detector.state_dict().items())


def test_the_sentence_says_what_was_taken_over(trained):
    preset, path = trained
    start = f"weights of {path}: all layers but the class output taken over; class output: "

    def sentence(*classes):
        return make_detector(RECIPES[preset], classes, path)[1].removeprefix(start)

    assert sentence("vest", "dog", "person", "helmet") == "dog, person taken over by name, 2 new: vest, helmet"
    assert sentence("cup", "dog", "person") == "all classes taken over by name (3)"
    assert sentence(*CLASSES[40:47]) == "cup taken over by name, 6 new: wine glass, fork, knife, spoon, bowl, …"
    assert sentence("vest") == "none taken over by name, 1 new: vest"
    assert make_detector(RECIPES[preset], ("vest",))[1] == ""


def test_another_preset_is_refused(trained):
    preset, path = trained
    other = next(name for name in RECIPES if name != preset)
    with pytest.raises(
        InputError, match=f"before.safetensors: weights of the preset '{preset}' cannot begin .*{other}"
    ):
        make_detector(RECIPES[other], BEFORE, path)


def test_files_that_are_no_detector_are_refused(trained, tmp_path):
    preset, path = trained
    tensors, metadata = load_weights(path)
    file = tmp_path / "bad.safetensors"

    def refused(words, content, about):
        save_weights(file, content, about)
        with pytest.raises(InputError, match=f"bad.safetensors: {words}"):
            make_detector(RECIPES[preset], ("dog", "vest"), file)

    refused("its metadata lack preset, classes", tensors, {})
    refused("head.class_output.* has the shape .*not 2 classes", tensors, metadata | {"classes": ["a", "b"]})
    refused("not the weights of a ", {name: t for name, t in tensors.items() if "backbone" not in name}, metadata)
    torch.save(tensors, tmp_path / "names.pth")  # no class names: which row is whose cannot be known
    with pytest.raises(InputError, match="names.pth: its metadata lack"):
        make_detector(RECIPES[preset], BEFORE, tmp_path / "names.pth")


# ---- in a training


@pytest.fixture
def other_weights(quick, tmp_path):
    """A tiny detector of two classes, one of which the sample has."""
    torch.manual_seed(3)
    save_detector(tmp_path / "other.safetensors", build("pyramid", ("bolt", "dog")))
    return tmp_path / "other.safetensors"


def test_the_command_fine_tunes_and_says_so_once(other_weights, sample, tmp_path, run):
    options = ("--epochs", 1, "--device", "cpu", "--weights", other_weights)
    code, lines, _ = run(sample, tmp_path / "run", *options)
    (line,) = [line for line in lines if "taken over" in line]
    assert code == 0 and line.startswith(f"weights of {other_weights}") and "dog taken over by name, 79 new" in line
    assert load_detector(tmp_path / "run" / "best.safetensors").settings.classes == CLASSES
    code, lines, _ = run(sample, tmp_path / "run", *options)  # goes on from the checkpoint: nothing is taken over
    assert code == 0 and not [line for line in lines if "taken over" in line]


def test_other_weights_are_another_training(other_weights, sample, tmp_path, run):
    """By the file's content: a copy of it under another name goes on, other weights or none are refused."""
    out, options = tmp_path / "run", ("--epochs", 1, "--device", "cpu")
    assert run(sample, out, *options, "--weights", other_weights)[0] == 0
    copy = shutil.copy(other_weights, tmp_path / "copy.safetensors")
    assert run(sample, out, *options, "--weights", copy)[0] == 0
    best = shutil.copy(out / "best.safetensors", tmp_path / "best.safetensors")
    for more, now in ((("--weights", best), "'"), ((), "None")):
        code, _, (line,) = run(sample, out, *options, *more)
        assert code == 2 and "checkpoint.pt: from a run with other settings (weights '" in line and f"now {now}" in line
    state = torch.load(out / "checkpoint.pt", weights_only=True)
    del state["settings"]["weights"]  # from before it was noted
    torch.save(state, out / "checkpoint.pt")
    assert run(sample, out, *options, "--weights", best)[0] == 0


def test_a_fine_tuning_that_is_interrupted_ends_like_one_that_is_not(other_weights, sample, tmp_path, monkeypatch):
    class Stop(Callback):
        stopped = False

        def before_batch(self, learn):
            if learn.steps == 4 and not self.stopped:
                self.stopped = True
                raise KeyboardInterrupt

    small_training(sample, tmp_path / "whole", weights=other_weights)
    attach(monkeypatch, Stop())
    with pytest.raises(KeyboardInterrupt):
        small_training(sample, tmp_path / "broken", weights=other_weights)
    small_training(sample, tmp_path / "broken", weights=other_weights)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")
    assert len(rows_of(tmp_path / "whole")) == 2
