"""Protects notebook 08's threshold slider: after the last cell it still moves the point and redraws the boxes."""

from test_notebooks import run_to_the_end

MOVED = """
choice, slider, window = explorer.children
assert choice.description == "image" and slider.description == "threshold"
views = [window.value]
for control, value in ((slider, 0.7), (choice, 3), (slider, 0.9)):
    control.value = value
    views.append(window.value)
assert all(view[:2] == b"\\xff\\xd8" for view in views)  # JPEG
assert len(set(views)) == len(views)
"""


def test_the_slider_moves_after_the_last_cell(tmp_path):
    run_to_the_end("08", tmp_path, MOVED)
