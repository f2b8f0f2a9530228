"""Protects what a training leaves behind: the table and the image of the losses, and the best weights, which are the
best and not the last, and never half written."""

import csv
import errno
import math
import resource
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from odutils.curves import plot_losses
from odutils.errors import InputError
from odutils.presets import build, load_detector
from odutils.reports import LogLosses, Progress, SaveBest, add_metrics, write_losses
from odutils.weights import load_weights

ROWS = [
    {"epoch": 0, "train_loss": 3.0, "seconds": 1.5, "AP50": 0.1, "valid_loss": 3.5},
    {"epoch": 1, "train_loss": 2.0, "seconds": 1.5, "AP50": 0.3, "valid_loss": 2.5},
]


def validated(detector, **row):
    """A learner at the end of a validation."""
    row = {"valid_loss": 1.0, **row}
    opt = SimpleNamespace(param_groups=[{"lr": 0.5}])
    return SimpleNamespace(training=False, detector=detector, epoch=row["epoch"], row=row, opt=opt)


# ---- SaveBest


@pytest.fixture(scope="module")
def detector():
    return build("pyramid", ("cat", "dog"))


def epoch_in(path: Path) -> int:
    return load_weights(path)[1]["epoch"]


def test_save_best_keeps_the_best_and_not_the_last(tmp_path, detector):
    path, save = tmp_path / "best.safetensors", SaveBest(tmp_path / "best.safetensors", trained_on="this")
    kept = []
    for epoch, value in enumerate([0.1, 0.3, 0.2, 0.3, 0.0]):
        with torch.no_grad():
            detector.head.class_output.bias.fill_(epoch)
        save.after_epoch(validated(detector, epoch=epoch, AP=value))
        kept.append(epoch_in(path))
    assert kept == [0, 1, 1, 3, 3]  # of equals the later one
    tensors, metadata = load_weights(path)
    assert tensors["head.class_output.bias"].tolist() == [3.0, 3.0] and metadata["trained_on"] == "this"
    assert load_detector(path).settings.classes == ("cat", "dog")


def test_save_best_takes_the_loss_where_there_are_no_metrics(tmp_path, detector):
    save = SaveBest(tmp_path / "best.safetensors")
    for epoch, loss in enumerate([3.0, 2.0, 2.5]):
        save.after_epoch(validated(detector, epoch=epoch, valid_loss=loss))
    assert epoch_in(save.path) == 1


def test_save_best_ignores_a_training_that_went_astray(tmp_path, detector):
    save = SaveBest(tmp_path / "best.safetensors")
    for epoch, loss in enumerate([3.0, float("nan")]):
        save.after_epoch(validated(detector, epoch=epoch, valid_loss=loss))
    assert epoch_in(save.path) == 0


def test_where_nothing_is_found_a_small_loss_is_best(tmp_path, detector):
    """AP 0 says the same of young weights and of ruined ones; so does a validation set without objects, of all."""
    for nothing in (0.0, None):
        save, kept = SaveBest(tmp_path / f"{nothing}.safetensors"), []
        for epoch, loss in enumerate([3.0, 2.0, 2.5, math.nan, math.inf, 2.0]):
            save.after_epoch(validated(detector, epoch=epoch, AP=nothing, valid_loss=loss))
            kept.append(epoch_in(save.path))
        assert kept == [0, 1, 1, 1, 1, 5]
    save = SaveBest(tmp_path / "found.safetensors")
    for epoch, (metric, loss) in enumerate([(0.0, 1.0), (0.1, 9.0), (0.0, 0.5), (math.nan, 0.5)]):
        save.after_epoch(validated(detector, epoch=epoch, AP=metric, valid_loss=loss))
    assert epoch_in(save.path) == 1  # anything found is better than the smallest loss


def test_weights_beyond_float16_are_a_divergence_unless_something_is_found(tmp_path):
    detector = build("pyramid", ("cat", "dog"))
    save = SaveBest(tmp_path / "best.safetensors")
    save.after_epoch(validated(detector, epoch=0, AP=0.0, valid_loss=3.0))
    with torch.no_grad():
        detector.head.class_output.bias[0] = 1e6
    with pytest.raises(
        InputError, match=r"the training diverged: loss 2, weights beyond 65504 .* rate 0.5.*lower --lr"
    ):
        save.after_epoch(validated(detector, epoch=1, AP=0.0, valid_loss=2.0))
    assert epoch_in(save.path) == 0
    save.after_epoch(validated(detector, epoch=2, AP=0.1))  # it works, so nothing is wrong with it
    assert load_weights(save.path)[0]["head.class_output.bias"][0] == 1e6


def test_the_same_weights_give_the_same_bytes(tmp_path, detector):
    files = []
    for name in ("one", "two"):
        save = SaveBest(tmp_path / name, trained_on="this", recipe={"lr": 1})
        save.after_epoch(validated(detector, epoch=0, AP=0.1))
        files.append(save.path.read_bytes())
    assert files[0] == files[1]


def test_the_best_weights_are_never_half_written(tmp_path, detector, monkeypatch):
    save = SaveBest(tmp_path / "best.safetensors")
    save.after_epoch(validated(detector, epoch=0, AP=0.1))
    before, write = save.path.read_bytes(), Path.write_bytes

    def full_disk(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="No space left"):
        save.after_epoch(validated(detector, epoch=1, AP=0.2))
    assert save.path.read_bytes() == before and list(tmp_path.iterdir()) == [save.path]
    monkeypatch.undo()
    assert save.best[0] == 0.1  # what was not saved does not count
    save.after_epoch(validated(detector, epoch=2, AP=0.15))
    assert epoch_in(save.path) == 2


# ---- LogLosses


def test_log_losses_takes_the_mean_of_the_batches(tmp_path):
    log = LogLosses(tmp_path)
    learn = SimpleNamespace(
        training=True, resumed_inside_epoch=False, epoch=0, row={"epoch": 0}, loss_func=SimpleNamespace()
    )
    for training, losses in ((True, [1.0, 2.0, 6.0]), (False, [4.0])):
        learn.training = training
        log.before_epoch(learn)
        for loss in losses:
            learn.loss, learn.loss_func.parts = torch.tensor(loss), torch.tensor([loss / 4, loss * 3 / 4])
            log.after_batch(learn)
        log.after_epoch(learn)
    with open(tmp_path / "losses.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert float(row["seconds"]) >= 0
    del row["seconds"]
    assert {name: float(value) for name, value in row.items()} == {
        "epoch": 0, "train_loss": 3.0, "train_class_loss": 0.75, "train_box_loss": 2.25,
        "valid_loss": 4.0, "valid_class_loss": 1.0, "valid_box_loss": 3.0,
    }  # fmt: skip


def test_a_column_that_comes_later_leaves_earlier_cells_empty(tmp_path):
    write_losses(tmp_path / "losses.csv", [{"epoch": 0}, {"epoch": 1, "AP": 0.5}])
    assert (tmp_path / "losses.csv").read_text().splitlines() == ["epoch,AP", "0,", "1,0.5"]


def test_the_loss_plot_is_an_image_and_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    for name, rows in (("one", ROWS[:1]), ("two", ROWS), ("plain", [{"epoch": 0, "train_loss": 1.0}])):
        plot_losses(tmp_path / f"{name}.png", rows)
        image = cv2.imread(str(tmp_path / f"{name}.png"))
        assert image.shape[0] > 300 and image.std() > 5
    assert plt.get_fignums() == before
    two = cv2.imread(str(tmp_path / "two.png"))[..., ::-1].astype(int)
    for colour in ((0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73)):  # training, validation, AP50
        assert (np.abs(two - colour).sum(axis=-1) < 30).sum() > 50


def test_what_cannot_be_measured_has_no_number(tmp_path):
    """pycocotools says -1 where the validation set has no object."""
    rows = [{"epoch": 0}, {"epoch": 1}]
    add_metrics(rows[0], {"AP": -1.0, "AP50": -1.0, "AP75": -1.0})
    add_metrics(rows[1], {"AP": 0.0, "AP50": 0.5}, " voc")
    assert rows == [{"epoch": 0, "AP": None, "AP50": None}, {"epoch": 1, "AP voc": 0.0, "AP50 voc": 0.5}]
    write_losses(tmp_path / "losses.csv", rows[:1])
    assert (tmp_path / "losses.csv").read_text().splitlines() == ["epoch,AP,AP50", "0,,"]
    plot_losses(tmp_path / "losses.png", [{"train_loss": 1.0, **rows[0]}])
    assert (tmp_path / "losses.png").stat().st_size > 1000


@pytest.mark.parametrize("name, write", [("losses.csv", write_losses), ("losses.png", plot_losses)])
def test_a_full_disk_is_told_and_the_old_file_stays(tmp_path, name, write):
    write(tmp_path / name, ROWS[:1])
    before = (tmp_path / name).read_bytes()
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, unlimited[1]))
    try:
        with pytest.raises(InputError, match=f"cannot write .*{name}"):
            write(tmp_path / name, ROWS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert (tmp_path / name).read_bytes() == before and len(list(tmp_path.iterdir())) == 1


# ---- Progress


def table_of(rows: list[dict], *columns: str) -> list[list[str]]:
    progress, lines = Progress(*columns), []
    progress.bar, progress.headed = SimpleNamespace(write=lambda line, table: lines.append(line)), False
    for row in rows:
        progress.after_epoch(SimpleNamespace(training=True, row=row))
        progress.after_epoch(SimpleNamespace(training=False, row=row))
    return lines


def test_the_table_has_the_chosen_columns():
    assert table_of(ROWS, "epoch", "AP50") == [["epoch", "AP50"], ["0", "0.1"], ["1", "0.3"]]


def test_the_table_fits_into_80_characters_whatever_is_logged(capsys):
    from fastprogress.fastprogress import ConsoleMasterBar

    row = {"epoch": 11, "train_loss": 1234.5678, "train_class_loss": 1.0, "train_box_loss": 1.0, "seconds": 12345.6}
    row |= {"AP": None, "AP50": 0.123456, "AP voc": 0.1, "AP coco": 0.1, "valid_loss": 0.00012345}
    head, line = table_of([row])
    assert head == ["epoch", "train_loss", "valid_loss", "AP", "AP50", "seconds"]
    assert line == ["11", "1235", "0.0001234", "–", "0.1235", "12346"]
    bar = ConsoleMasterBar(range(1))
    for cells in (head, line):
        bar.write(cells, table=True)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
