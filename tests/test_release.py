"""Protects what the model card promises: its command trains (here with small numbers), its lists and figures are those
of the files beside it, and the shipped weights have the threshold that it names."""

import json
import re
import shlex

import pytest
import release
from trainings import rows_of

from odutils.__main__ import main
from odutils.files import DATA
from odutils.sample.make import make_sample
from odutils.weights import load_weights

CARD = DATA / "weights" / "README.md"
TINY = {"--size": "64", "--batch-size": "4", "--epochs": "2", "--stop-after": "1", "--workers": "0", "--warm-up": "2"}


@pytest.fixture(scope="module")
def scores():
    return json.loads((DATA / "weights" / "scores.json").read_text())


def test_the_cards_command_trains(quick, tmp_path):
    (line,) = re.findall(r"^python -m odutils (train .*)$", CARD.read_text(), re.M)
    words = shlex.split(line)
    data = make_sample(tmp_path / "photos", images=(12, 3), size=64, objects=(1, 3))
    (data / "val").rename(data / "dev_large")
    (data / "annotations" / "instances_val.json").rename(data / "annotations" / "instances_dev_large.json")
    for option, value in (TINY | {"--data": str(data), "--out": str(tmp_path / "out")}).items():
        words[words.index(option) + 1] = value
    assert main([*words, "--device", "cpu"]) == 0
    assert len(rows_of(tmp_path / "out")) == 1 and (tmp_path / "out" / "best.safetensors").exists()


def test_the_cards_tables_are_those_of_the_scores(scores):
    card, chosen = CARD.read_text(), scores["dev_large"]
    for mark, rows in (("thresholds", release.threshold_rows(chosen)), ("classes", release.class_rows(chosen))):
        assert release.fill(card, mark, rows) == card
    for split in ("dev_large", "dev"):
        for metrics in scores[split]["scores"]["by_source"].values():
            assert f"| {metrics['AP']:.3f} ± " in card and f"| {metrics['AP50']:.3f} ± " in card


def test_the_threshold_is_the_lowest_that_is_precise_enough(scores):
    points, chosen = scores["dev_large"]["operating_points"], scores["dev_large"]["threshold"]
    assert load_weights(DATA / "weights" / "pyramid.safetensors")[1]["threshold"] == chosen["threshold"]
    assert chosen["precision"] >= release.PRECISION
    assert all(p["precision"] < release.PRECISION for p in points if p["threshold"] < chosen["threshold"])


def test_the_card_counts_what_it_was_trained_on():
    counts = {s: len(ids) for s, ids in json.loads((DATA / "weights" / "trained_on.json").read_text()).items()}
    card = CARD.read_text()
    for count in (sum(counts.values()), *counts.values()):
        assert f"{count:,}" in card
