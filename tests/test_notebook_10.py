"""Protects the controls of notebook 10: after the last cell, image and margin still redraw the box and its IoU."""

import pytest

pytest.importorskip("nbclient")

from test_notebooks import run_to_the_end  # noqa: E402

MOVED = """
choice, slider, window = rule_explorer.children
assert choice.description == "image" and slider.description == "margin"
views = [window.value]
for control, value in ((slider, 0.02), (choice, 6), (slider, 0.2)):
    control.value = value
    views.append(window.value)
assert all(view[:2] == b"\\xff\\xd8" for view in views)  # JPEG
assert len(set(views)) == len(views)
"""


def test_the_slider_moves_after_the_last_cell(tmp_path):
    run_to_the_end("10", tmp_path, MOVED)
