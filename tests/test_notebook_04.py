"""Protects the controls of notebook 04: they still redraw after the last cell has run, whatever names cells rebind."""

import pytest

pytest.importorskip("nbclient")

from test_notebooks import run_to_the_end  # noqa: E402

MOVE_EVERYTHING = """
slider, view = gamma_panel.children
before = bytes(view.value)
slider.value = 0.5
assert before.startswith(b"\\xff\\xd8") and bytes(view.value).startswith(b"\\xff\\xd8")
assert bytes(view.value) != before, "gamma"
slider.value = 2
assert bytes(view.value) == before, "the same gamma draws the same figure"

sliders, view = box_panel.children
for slider in sliders.children:
    before = bytes(view.value)
    slider.value = 0.2
    assert slider.description and bytes(view.value) != before, slider.description
"""


def test_the_sliders_redraw_after_the_last_cell(tmp_path):
    run_to_the_end("04", tmp_path, MOVE_EVERYTHING)
