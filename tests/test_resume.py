"""Protects interruptions: a training that was stopped at any moment and started again ends as if nothing had happened,
and a checkpoint that cannot be used, or cannot be written, is told in a sentence."""

import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from trainings import assert_same_result, attach, make_quick, rows_of, small_training

from odutils.__main__ import main
from odutils.callbacks import Callback
from odutils.errors import InputError
from odutils.resume import read_checkpoint

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def quick_unbroken(sample, tmp_path_factory):
    out = tmp_path_factory.mktemp("quick")
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        small_training(sample, out)
    return out


# ---- checkpoints that do not fit


def test_other_settings_are_refused(quick, quick_unbroken, sample):
    with pytest.raises(
        InputError, match=r"other settings \(epochs 2, now 3; lr 0.0015, now 0.5; seed 0, now 1\): repeat"
    ):
        small_training(sample, quick_unbroken, epochs=3, lr=0.5, seed=1)


def test_a_setting_that_an_older_checkpoint_lacks_is_accepted(quick_unbroken):
    settings = torch.load(quick_unbroken / "checkpoint.pt", weights_only=True)["settings"]
    assert {"preset", "lr", "classes", "images", "processes"} <= settings.keys()
    read_checkpoint(quick_unbroken / "checkpoint.pt", {**settings, "new": 1}, torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_named(quick_unbroken, tmp_path):
    whole = (quick_unbroken / "checkpoint.pt").read_bytes()
    for content in (
        b"",
        b"no checkpoint",
        whole[: len(whole) // 2],
        (quick_unbroken / "best.safetensors").read_bytes(),
    ):
        (tmp_path / "checkpoint.pt").write_bytes(content)
        with pytest.raises(InputError, match="checkpoint.pt: not a checkpoint"):
            read_checkpoint(tmp_path / "checkpoint.pt", {}, torch.device("cpu"))
    torch.save({"weights": torch.zeros(1)}, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="not a checkpoint of this project"):
        read_checkpoint(tmp_path / "checkpoint.pt", {}, torch.device("cpu"))


def test_a_checkpoint_of_version_0_1_is_refused_with_a_sentence(quick, quick_unbroken, sample, tmp_path):
    """It said "body" where we say "backbone"; its settings lack the new names."""
    state = torch.load(quick_unbroken / "checkpoint.pt", weights_only=True)
    state["detector"] = {name.replace("backbone.", "body."): tensor for name, tensor in state["detector"].items()}
    state["settings"] = {name: value for name, value in state["settings"].items() if "backbone" not in name}
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(InputError, match="checkpoint.pt: from another version .*: remove it") as error:
        small_training(sample, tmp_path)
    assert "\n" not in str(error.value)


def test_a_full_disk_ends_with_a_sentence_and_the_old_checkpoint(quick, sample, tmp_path, run):
    options = ("--epochs", 2, "--checkpoint-every", 1, "--device", "cpu")

    class Fill(Callback):
        def before_batch(self, learn):
            if learn.training and learn.steps == 3:
                resource.setrlimit(resource.RLIMIT_FSIZE, (2000, unlimited[1]))

    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        attach(patch, Fill())
        try:
            code, _, (line,) = run(sample, tmp_path, *options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert code == 2 and f"cannot write {tmp_path / 'checkpoint.pt'}" in line
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["steps"] == 3
    assert run(sample, tmp_path, *options)[0] == 0  # with room again, it goes on


# ---- interruptions


EVENTS = "before_fit before_epoch before_batch predict after_predict get_loss after_loss backward after_backward step"
EVENTS = f"{EVENTS} after_step zero_grad after_batch cleanup_batch after_epoch cleanup_epoch after_fit cleanup_fit"


class Interrupt(Callback):
    """Ctrl-C at an event, once in each epoch's training, not in its first batch, and once in its validation."""

    def __init__(self, event: str, order: int, reached: set):
        self.order, self.reached = order, reached
        self.of_a_batch = not event.endswith(("epoch", "fit"))
        setattr(self, event, self.stop)

    def stop(self, learn):
        phase = (getattr(learn, "epoch", None), learn.training)
        begins = self.of_a_batch and learn.training and learn.iter == 0
        if phase not in self.reached and not begins:
            self.reached.add(phase)
            raise KeyboardInterrupt


def assert_same_memory(first, second):
    """Two checkpoints, or parts of them, but for the time that they took."""
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for name in first.keys() - {"seconds"}:
            assert_same_memory(first[name], second[name])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same_memory(one, other)
    else:
        assert torch.equal(first, second) if isinstance(first, torch.Tensor) else first == second


@pytest.mark.parametrize("order", [-100, 100])
@pytest.mark.parametrize("event", EVENTS.split())
def test_interrupted_in_any_event_it_ends_like_the_unbroken_run(
    quick, quick_unbroken, sample, tmp_path, monkeypatch, event, order
):
    reached, stops = set(), 0
    attach(monkeypatch, Interrupt(event, order, reached))
    while stops < 6:
        try:
            small_training(sample, tmp_path)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == len(reached) >= 1
    assert_same_result(tmp_path, quick_unbroken)
    memories = [torch.load(out / "checkpoint.pt", weights_only=True) for out in (tmp_path, quick_unbroken)]
    assert_same_memory(*memories)


def test_killed_at_random_moments_the_command_ends_like_an_unbroken_run(sample, tmp_path):
    """Real processes and SIGKILL; the killed runs have a process that loads images, the unbroken one does without."""
    options = ["train", "--data", str(sample), "--size", "64", "--epochs", "6", "--batch-size", "4", "--device", "cpu"]
    options += ["--checkpoint-every", "2", "--seed", "3"]
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    command = [sys.executable, "-m", "odutils", *options, "--out", str(broken), "--workers", "1"]
    chance, checkpoint = random.Random(5), broken / "checkpoint.pt"
    for _ in range(2):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else None
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            command, cwd=TESTS.parent, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        until = time.monotonic() + 100
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            assert time.monotonic() < until
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.8))
        process.send_signal(signal.SIGKILL)
        _, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
    assert torch.load(checkpoint, weights_only=True)["epoch"] < 6
    assert main([*options, "--out", str(broken), "--workers", "1"]) == 0
    assert main([*options, "--out", str(whole), "--workers", "0"]) == 0
    assert len(rows_of(whole)) == 6
    assert_same_result(broken, whole)
