"""Protects several processes: together they do what one would with the joint batch, and the first alone writes and
prints; and a single process, which remembers no device."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from trainings import attach, command, make_quick, rows_of, small_training

from odutils import training
from odutils.__main__ import main
from odutils.callbacks import Callback, FreezeBackbone
from odutils.errors import InputError
from odutils.losses import DetectionLoss
from odutils.presets import build, load_detector
from odutils.processes import Share, default_workers, synchronise_norms
from odutils.recipe import Recipe
from odutils.training import make_learner

TESTS = Path(__file__).parent


def test_the_device_is_chosen_afresh_each_time(quick, sample, tmp_path, monkeypatch):
    """An Accelerator remembers: after `device="cpu"` the next training would stay there without a word."""
    chosen, original = [], training.make_learner
    monkeypatch.setattr(training, "make_learner", lambda *most: chosen.append(most[4]) or original(*most))
    monkeypatch.setattr(training, "best_device", lambda name: torch.device("cpu", None if name else 0))
    small_training(sample, tmp_path / "first", epochs=1, device="cpu")
    small_training(sample, tmp_path / "second", epochs=1, device=None)
    assert chosen == [torch.device("cpu"), torch.device("cpu", 0)]


class Still(Callback):
    """Batch norm in eval mode, so that an image's answer does not depend on the others of its batch."""

    def before_epoch(self, learn):
        for module in learn.detector.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()


class Gradients(Callback):
    order = 18  # after Share (15), before ClipGradients (20)

    def after_backward(self, learn):
        self.gradients = {name: p.grad.clone() for name, p in learn.detector.named_parameters() if p.grad is not None}

    def after_batch(self, learn):
        if learn.training:
            self.loss = learn.loss.detach()


class EverWorse(Callback):
    """Validations of which the first is the best; it writes down which epochs were trained."""

    order = 32  # after CocoMetrics and LogLosses, before SaveBest

    def before_epoch(self, learn):
        if learn.training:
            print("trains epoch", learn.epoch)

    def after_epoch(self, learn):
        learn.row["AP"] = 0.5 - 0.1 * learn.epoch


def joint_batch():
    """Six images; the first half, by the sampler's turns, has many objects and the other few."""
    chance = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (6, 3, 64, 64), dtype=torch.uint8, generator=chance)
    corner = torch.rand(6, 5, 2, generator=chance) * 0.6
    boxes = torch.cat([corner, corner + 0.1 + 0.3 * torch.rand(6, 5, 2, generator=chance)], dim=-1)  # (6, 5, 4)
    labels = torch.randint(1, 5, (6, 5), generator=chance)
    labels[1::2, 1:] = 0
    labels[3] = 0
    known = torch.ones(6, 4, dtype=torch.bool)
    known[2, 1] = False
    return images, boxes * (labels > 0)[..., None], labels, known


def gradient(kind: str, part: slice, *extra) -> tuple[dict, float]:
    """The gradient and the loss of `part` of the joint batch. Three batches: every process must stay in step."""
    torch.manual_seed(0)
    detector, watch = build("pyramid", ("a", "b", "c", "d")), Gradients()
    batch = [tensor[part] for tensor in joint_batch()]
    dls = SimpleNamespace(train=[batch], valid=[batch])
    loss, recipe = DetectionLoss(detector.grid(64, 64), kind), Recipe(epochs=1, pretrained=False)
    learn = make_learner(detector, dls, recipe, loss, "cpu", [Still(), watch, *extra])
    learn.fit(1)
    result = watch.gradients, float(watch.loss)
    learn.fit(1, valid=False)  # again, with what the first has left behind
    return result


def work(sample: str, out: str):
    """What each of two processes does."""
    from accelerate import Accelerator

    torch.set_num_threads(1)
    out, rank = Path(out), int(os.environ["RANK"])
    # First of all: what accelerate was told once, it keeps. Two validations, of the first process alone.
    assert main(command(sample, out / f"training{rank}", "--epochs", 2, "--no-pretrained")) == 0
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        attach(patch, EverWorse())
        small_training(sample, out / f"stopped{rank}", epochs=9, patience=2)
    accelerator = Accelerator(cpu=True)
    shared = {kind: gradient(kind, slice(rank, None, 2), Share(accelerator)) for kind in ("quality", "article")}
    if accelerator.is_main_process:
        torch.save(shared, out / "shared.pt")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def two_processes(sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    (out / "training1").mkdir()  # not shared, so that it shows which process writes
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    both["CUDA_VISIBLE_DEVICES"] = ""  # as where there is no card, so that the default device is the CPU
    call = f"import test_processes; test_processes.work({str(sample)!r}, {str(out)!r})"
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent)])
    processes = []
    for rank in ("0", "1"):
        environment = {**os.environ, **both, "RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": paths}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        processes.append(subprocess.Popen([sys.executable, "-c", call], env=environment, **pipes))
    try:
        for rank, process in enumerate(processes):
            output, _ = process.communicate(timeout=200)
            assert process.returncode == 0, output
            (out / f"output{rank}").write_text(output)
    finally:
        for process in processes:
            process.kill()
    return out


@pytest.mark.parametrize("kind", ["quality", "article"])
def test_two_processes_have_the_gradient_of_the_joint_batch(two_processes, kind):
    shared, shared_loss = torch.load(two_processes / "shared.pt", weights_only=True)[kind]
    alone, loss = gradient(kind, slice(None))
    assert shared_loss == pytest.approx(loss, rel=1e-5)
    assert shared.keys() == alone.keys()
    longest = max(float(g.norm()) for g in alone.values())
    for name, expected in alone.items():
        assert torch.allclose(shared[name], expected, rtol=1e-3, atol=1e-5 * longest), name


def test_two_processes_train_and_only_the_first_writes(two_processes, sample):
    first = two_processes / "training0"
    assert len(rows_of(first)) == 2 and load_detector(first / "best.safetensors")
    assert not list((two_processes / "training1").iterdir())
    output = (two_processes / "output0").read_text()
    assert "2 processes share each batch; batch norm sees" in output and output.count("best weights:") == 1
    assert "best weights" not in (two_processes / "output1").read_text()
    assert "learn from" not in (two_processes / "output1").read_text()
    settings = torch.load(first / "checkpoint.pt", weights_only=True)["settings"]
    assert settings["processes"] == 2
    with pytest.raises(InputError, match="processes 2, now 1"):
        small_training(sample, first, pretrained=False)


def test_two_processes_stop_together_although_one_alone_validates(two_processes):
    for rank in (0, 1):
        output = (two_processes / f"output{rank}").read_text()
        trained = [line for line in output.splitlines() if line.startswith("trains epoch")]
        assert trained == ["trains epoch 0", "trains epoch 1", "trains epoch 2"]
    assert len(rows_of(two_processes / "stopped0")) == 3 and not (two_processes / "stopped1").exists()


def test_batch_norm_that_learns_is_shared_on_a_gpu():
    """Which cannot be had here: the network must stay the same, with timm's activations, and keep its tensors."""
    detector = build("pyramid", ("a", "b")).eval()
    FreezeBackbone().before_fit(SimpleNamespace(detector=detector))
    images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    before, tensors = detector(images)[0], dict(detector.state_dict(keep_vars=True))
    for unfrozen in (False, True):  # as with ImageNet's backbone, and as with a random one
        detector.backbone.requires_grad_(unfrozen)
        synchronise_norms(detector)
        kinds = [type(m) for m in detector.backbone.modules() if "BatchNorm" in type(m).__name__]
        assert all(issubclass(kind, nn.SyncBatchNorm) == unfrozen for kind in kinds) and len(kinds) > 40
        assert not [module for module in detector.head.modules() if isinstance(module, nn.BatchNorm2d)]
        assert torch.equal(detector(images)[0], before)
    after = detector.state_dict(keep_vars=True)
    assert all(after[name] is tensor for name, tensor in tensors.items()) and after.keys() == tensors.keys()


def test_a_worker_for_each_core_but_not_more_than_eight(monkeypatch):
    for cores, processes, expected in ((2, 1, 2), (64, 1, 8), (16, 4, 4), (2, 4, 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, n=cores: set(range(n)), raising=False)
        monkeypatch.setenv("WORLD_SIZE", str(processes))
        assert default_workers() == expected


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(InputError, match="shared evenly by 3"):
        Recipe(batch_size=4).check(processes=3)
