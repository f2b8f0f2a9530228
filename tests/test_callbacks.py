"""Protects what steers a training: each callback does what it says, compared with literal values or a plain loop, on
the real `pyramid` network and miniai's own Learner."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trainings import CLASSES, find, learner

from odutils.callbacks import EMA, Callback, ClipGradients, FreezeBackbone, Schedule
from odutils.presets import build
from odutils.recipe import Recipe
from odutils.training import make_optimiser


def copy_of(state: dict) -> dict:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def assert_same(first: dict, second: dict):
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


# ---- Schedule


def test_schedule_rises_and_falls_as_written():
    schedule = Schedule(total=100, warm_up=20)
    middle = 0.01 + 0.99 / 2
    expected = {0: 1 / 20, 9: 0.5, 19: 1.0, 20: 1.0, 60: middle, 100: 0.01, 1000: 0.01}
    assert {step: schedule.factor(step) for step in expected} == pytest.approx(expected)
    factors = [schedule.factor(step) for step in range(101)]
    assert factors[:21] == sorted(factors[:21]) and factors[20:] == sorted(factors[20:], reverse=True)


def test_schedule_of_a_short_training_warms_up_for_a_quarter():
    assert Schedule(total=8, warm_up=200).warm_up == 2
    assert Schedule(total=1, warm_up=200).factor(0) == 1.0


def test_schedule_keeps_the_ratio_of_the_groups_and_looks_at_the_step():
    seen = []

    class Look(Callback):
        def after_step(self, learn):
            seen.append([group["lr"] for group in learn.opt.param_groups])

    learn = learner(Look(), steps=4, valid=0, epochs=2, warm_up=2, lr=1.0, backbone_lr=0.1)
    base = [group["base_lr"] for group in learn.opt_func(None, None).param_groups]
    learn.fit(2)
    fall = [0.01 + 0.99 * (1 + math.cos(math.pi * step / 6)) / 2 for step in range(6)]
    for rates, factor in zip(seen, [0.5, 1.0, *fall], strict=True):
        assert rates == pytest.approx([rate * factor for rate in base])


# ---- FreezeBackbone


def test_moving_the_average_looks_no_tensor_up(monkeypatch):
    """`state_dict()` walks over every module, which costs as much as a part of the step itself."""
    learn = learner(steps=2, valid=0, epochs=1, pretrained=False)
    average = find(learn, EMA)
    learn.fit(1, valid=False)
    before = average.state["head.class_output.weight"].clone()
    monkeypatch.setattr(type(learn.detector), "state_dict", lambda *_: pytest.fail("a walk over the network"))
    with torch.no_grad():
        learn.detector.head.class_output.weight.add_(1)
    average.after_step(learn)
    assert not torch.equal(average.state["head.class_output.weight"], before)


@pytest.mark.parametrize("whole", [False, True])
def test_freeze_backbone_keeps_statistics_and_first_layers(whole):
    learn = learner(pretrained=True, freeze_backbone=whole, epochs=1)
    backbone, before = learn.detector.backbone, copy_of(learn.detector.state_dict())
    learn.fit(1)
    norms = [name for name, module in learn.detector.named_modules() if isinstance(module, nn.BatchNorm2d)]
    fixed_parts = [backbone] if whole else backbone.frozen_parts()
    fixed_parameters = {id(parameter) for part in fixed_parts for parameter in part.parameters()}
    fixed = {name for name, parameter in learn.detector.named_parameters() if id(parameter) in fixed_parameters}
    changed = {name for name, tensor in learn.detector.state_dict().items() if not torch.equal(tensor, before[name])}
    backbone_norms = [name for name in norms if name.startswith("backbone.")]
    assert len(backbone_norms) > 40 and len(fixed) > 30
    assert not [name for name in changed if name.rpartition(".")[0] in backbone_norms]
    assert not changed & fixed
    assert any(name.startswith("backbone.") for name in changed) != whole
    head_norm = next(name for name in norms if name.startswith("head."))
    assert f"{head_norm}.running_mean" in changed and "head.class_output.weight" in changed


def test_a_random_backbone_is_trained_as_a_whole():
    learn = learner(pretrained=False, steps=1, epochs=1)
    before = copy_of(learn.detector.state_dict())
    learn.fit(1)
    first = next(name for name, _ in learn.detector.named_parameters() if name.startswith("backbone."))
    assert not torch.equal(before[first], learn.detector.state_dict()[first])
    assert not torch.equal(before["backbone.net.bn1.running_mean"], learn.detector.backbone.net.bn1.running_mean)


def test_a_backbone_that_names_no_first_layers_keeps_its_norms_only():
    backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    for whole, expected in ((False, True), (True, False)):
        backbone.requires_grad_(True)
        FreezeBackbone(whole).before_fit(SimpleNamespace(detector=SimpleNamespace(backbone=backbone)))
        assert backbone[0].weight.requires_grad == expected and not backbone[1].weight.requires_grad


# ---- EMA


class Record(Callback):
    """Notes the weights of every step before EMA (order -20) sees them, and those that validation uses."""

    order = -30

    def __init__(self):
        self.steps, self.validation = [], []

    def after_step(self, learn):
        self.steps.append(copy_of(learn.detector.state_dict()))

    def before_batch(self, learn):
        if not learn.training:
            self.validation.append(copy_of(learn.detector.state_dict()))


def test_ema_equals_a_plain_loop_and_is_what_validation_uses():
    record = Record()
    learn = learner(record, steps=4, epochs=2, ema=0.3, pretrained=False)
    average = {name: tensor.double() for name, tensor in copy_of(learn.detector.state_dict()).items()}
    learn.fit(2)
    for step, weights in enumerate(record.steps):
        decay = min(0.3, (1 + step) / (10 + step))
        for name, tensor in weights.items():
            if tensor.is_floating_point():
                average[name] = decay * average[name] + (1 - decay) * tensor.double()
    state = find(learn, EMA).state
    for name, tensor in average.items():
        if state[name].is_floating_point():
            assert torch.allclose(state[name].double(), tensor, rtol=1e-5, atol=1e-6), name
        else:  # a count of batches has no average
            assert state[name] == record.steps[-1][name], name
    assert_same(record.validation[-1], state)
    assert not torch.equal(state["head.class_output.weight"], record.steps[-1]["head.class_output.weight"])


def test_the_weights_of_training_come_back_bit_for_bit():
    record = Record()
    learn = learner(record, epochs=1, pretrained=False)
    learn.fit(1)
    assert_same(record.steps[-1], learn.detector.state_dict())


def test_the_weights_of_training_come_back_when_validation_fails():
    class Fail(Callback):
        def after_predict(self, learn):
            if not learn.training:
                raise RuntimeError("validation fails")

    record = Record()
    learn = learner(record, Fail(), epochs=1, pretrained=False)
    with pytest.raises(RuntimeError, match="validation fails"):
        learn.fit(1)
    assert len(record.validation) == 1
    assert_same(record.steps[-1], learn.detector.state_dict())


def test_weights_stay_when_a_validation_is_interrupted_before_the_average_is_in_place():
    class Stop(Callback):
        order = -50

        def before_epoch(self, learn):
            if not learn.training and learn.epoch == 1:
                raise KeyboardInterrupt

    record = Record()
    learn = learner(record, Stop(), epochs=2, pretrained=False)
    with pytest.raises(KeyboardInterrupt):
        learn.fit(2)
    assert_same(record.steps[-1], learn.detector.state_dict())  # not those that validation replaced an epoch before


# ---- ClipGradients and the optimiser


def test_clip_gradients_shortens_long_ones_and_leaves_short_ones():
    layer = nn.Linear(2, 1, bias=False)
    learn = SimpleNamespace(detector=layer)
    layer.weight.grad = torch.tensor([[30.0, 40.0]])
    ClipGradients(10.0).after_backward(learn)
    assert torch.allclose(layer.weight.grad, torch.tensor([[6.0, 8.0]]), atol=1e-4)
    layer.weight.grad = torch.tensor([[3.0, 4.0]])
    ClipGradients(10.0).after_backward(learn)
    assert torch.equal(layer.weight.grad, torch.tensor([[3.0, 4.0]]))


def test_clipping_and_the_optimiser_work_on_devices_without_fused_kernels(monkeypatch):
    """As on Apple's GPUs with older versions of torch: `foreach=True` and `fused=True` raise there."""
    clip = nn.utils.clip_grad_norm_
    given = []
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda *a, **k: given.append(k) or clip(*a, **k))
    layer = nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    ClipGradients().after_backward(SimpleNamespace(detector=layer))
    assert given == [{}]
    detector = build("pyramid", CLASSES)
    assert make_optimiser(detector, Recipe()).defaults["fused"]
    assert not make_optimiser(detector.to("meta"), Recipe()).defaults["fused"]


def test_every_callback_of_a_learner_works_without_logging_and_resuming():
    learn = learner(epochs=1, pretrained=False)
    learn.fit(1)
    assert learn.steps == 3 and learn.row == {"epoch": 0}
