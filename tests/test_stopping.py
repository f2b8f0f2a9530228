"""Protects early stopping: the training ends after as many epochs without a better validation as were asked for, no
earlier and no later, also when it is interrupted and started again. test_processes.py stops two processes together."""

import pytest
import torch
from trainings import assert_same_result, attach, rows_of, small_training

from odutils.callbacks import Callback
from odutils.errors import InputError
from odutils.recipe import Recipe
from odutils.weights import load_weights


class Validation(Callback):
    """Validations whose AP, and loss where the AP is 0 or None, are given: one for each epoch."""

    order = 32  # after CocoMetrics and LogLosses, before SaveBest

    def __init__(self, *aps, losses=()):
        self.aps, self.losses = aps, losses

    def after_epoch(self, learn):
        if not learn.training:
            learn.row["AP"] = self.aps[learn.epoch]
            if self.losses:
                learn.row["valid_loss"] = self.losses[learn.epoch]


def epochs_of(out):
    return [int(row["epoch"]) for row in rows_of(out)]


@pytest.mark.parametrize(
    "patience, aps, ran, best",
    [
        (1, [0.1, 0.3, 0.2, 0.9], 3, 1),
        (2, [0.1, 0.3, 0.2, 0.4, 0.1, 0.3, 0.9], 6, 3),  # epochs in a row: a better one begins to count anew
        (2, [0.3, 0.3, 0.2, 0.4, 0.5], 3, 1),  # as good is not better; its weights are saved all the same
        (10, [0.5, *[1.0] * 13], 12, 11),  # cannot become better
        (3, [0.1, 0.2, 0.1, 0.1], 4, 1),  # the schedule ends first
    ],
)
def test_it_ends_after_so_many_epochs_without_a_better_one(
    quick, sample, tmp_path, monkeypatch, patience, aps, ran, best
):
    attach(monkeypatch, Validation(*aps))
    small_training(sample, tmp_path, epochs=len(aps), patience=patience)
    assert epochs_of(tmp_path) == list(range(ran))
    assert load_weights(tmp_path / "best.safetensors")[1]["epoch"] == best


@pytest.mark.parametrize("nothing", [0.0, None])
def test_where_nothing_is_found_the_loss_decides(quick, sample, tmp_path, monkeypatch, nothing):
    attach(monkeypatch, Validation(*[nothing] * 6, losses=[3.0, 2.0, 1.0, 1.5, 1.2, 0.1]))
    small_training(sample, tmp_path, epochs=6, patience=2)
    assert epochs_of(tmp_path) == [0, 1, 2, 3, 4]


def test_without_patience_nothing_stops(quick, sample, tmp_path, monkeypatch):
    attach(monkeypatch, Validation(0.5, 0.4, 0.3, 0.2))
    small_training(sample, tmp_path, epochs=4)
    assert epochs_of(tmp_path) == [0, 1, 2, 3]


def test_the_command_says_why_does_nothing_more_and_goes_on_with_more_patience(
    quick, sample, tmp_path, monkeypatch, run
):
    attach(monkeypatch, Validation(0.1, 0.4, 0.3, 0.2, 0.1, 0.5))
    options = ("--epochs", 6, "--device", "cpu")
    code, lines, _ = run(sample, tmp_path, *options, "--patience", 2)
    why = "stopped after epoch 3: not better than epoch 1 (AP 0.4) for 2 epochs; a higher --patience goes on"
    assert code == 0 and why in lines
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, lines, _ = run(sample, tmp_path, *options, "--patience", 2)
    assert code == 0 and why in lines
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    code, lines, _ = run(sample, tmp_path, *options, "--patience", 4)
    assert code == 0 and epochs_of(tmp_path) == [0, 1, 2, 3, 4, 5] and not any("stopped" in line for line in lines)


def test_a_training_that_began_without_patience_is_judged_from_its_best_epoch(quick, sample, tmp_path, monkeypatch):
    attach(monkeypatch, Validation(0.4, 0.3, 0.2, 0.9))
    small_training(sample, tmp_path, epochs=4, stop_after=2)
    small_training(sample, tmp_path, epochs=4, patience=2)
    assert epochs_of(tmp_path) == [0, 1, 2]


def test_more_patience_gives_what_an_unbroken_training_gives(quick, sample, tmp_path, monkeypatch):
    attach(monkeypatch, Validation(0.4, 0.3, 0.2, 0.5))
    small_training(sample, tmp_path / "broken", epochs=4, patience=1)
    assert epochs_of(tmp_path / "broken") == [0, 1]
    small_training(sample, tmp_path / "broken", epochs=4, patience=3)
    small_training(sample, tmp_path / "whole", epochs=4, patience=3)
    assert_same_result(tmp_path / "broken", tmp_path / "whole")


def test_a_checkpoint_from_before_patience_existed_goes_on(quick, sample, tmp_path, monkeypatch):
    attach(monkeypatch, Validation(0.4, 0.3, 0.2, 0.5, 0.1))
    small_training(sample, tmp_path, epochs=5, stop_after=2)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    del state["memories"]["SaveBest"]["better_epoch"]
    torch.save(state, tmp_path / "checkpoint.pt")
    small_training(sample, tmp_path, epochs=5, patience=1)
    assert epochs_of(tmp_path) == [0, 1, 2, 3, 4]  # no best epoch is known before the fourth


class Interrupt(Callback):
    """Ctrl-C at an event of each epoch's validation, once."""

    def __init__(self, event: str, order: int):
        self.order, self.reached = order, set()
        setattr(self, event, self.stop)

    def stop(self, learn):
        if not learn.training and learn.epoch not in self.reached:
            self.reached.add(learn.epoch)
            raise KeyboardInterrupt


@pytest.mark.parametrize("order", [-100, 38, 100])
@pytest.mark.parametrize("event", ["before_epoch", "after_epoch", "cleanup_epoch"])
def test_an_interruption_does_not_change_when_it_stops(quick, sample, tmp_path, monkeypatch, event, order):
    attach(monkeypatch, Validation(0.1, 0.3, 0.2, 0.1, 0.9))
    attach(monkeypatch, Interrupt(event, order))
    for _ in range(10):
        try:
            small_training(sample, tmp_path, epochs=5, patience=2)
            break
        except KeyboardInterrupt:
            continue
    assert epochs_of(tmp_path) == [0, 1, 2, 3]
    assert load_weights(tmp_path / "best.safetensors")[1]["epoch"] == 1


def test_no_patience_at_all_is_refused(sample, tmp_path, run):
    with pytest.raises(InputError, match="patience 0: wait for one epoch"):
        Recipe(patience=0).check()
    with pytest.raises(SystemExit) as stop:
        run(sample, tmp_path, "--patience", 0)
    assert stop.value.code == 2
