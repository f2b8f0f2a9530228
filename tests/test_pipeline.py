"""Protects the diagram that every notebook shows: it names what the detector is, and each notebook has a part of it."""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from odutils.anchors import PYRAMID_STRIDES
from odutils.inference import Predictor
from odutils.model import LiteBackbone
from odutils.pipeline import ARROWS, INFERENCE, LIT, LIT_IN, PARTS, draw_pipeline

ROOT = Path(__file__).resolve().parent.parent


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def test_its_shapes_are_those_of_the_shipped_detector():
    detector = Predictor.from_weights(device="cpu").detector
    assert numbers(PARTS["augmentation"].shape) == [3, detector.settings.size, detector.settings.size]
    assert numbers(PARTS["backbone"].shape) == [*PYRAMID_STRIDES[:3], *LiteBackbone.channels]
    assert numbers(PARTS["neck"].shape) == [*PYRAMID_STRIDES, detector.head.class_output.in_channels]


def test_each_notebook_has_its_part_and_each_part_a_notebook():
    assert set(LIT_IN) == {path.name[:2] for path in (ROOT / "nbs").glob("[0-9]*.ipynb")}
    assert set().union(*LIT_IN.values()) == set(PARTS)


def test_what_is_named_is_lit_and_connected():
    connected = {*INFERENCE, *(name for arrow in ARROWS for name in arrow)}
    assert connected == set(PARTS)
    figure = draw_pipeline(["loss"])
    lit = [box for box in figure.axes[0].patches if box.get_facecolor()[:3] == plt.matplotlib.colors.to_rgb(LIT)]
    assert len(lit) == 1
    plt.close(figure)
    with pytest.raises(KeyError):
        draw_pipeline(["elephant"])
