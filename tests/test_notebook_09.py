"""Protects notebook 09's sliders, tiles and threshold: a move redraws the photograph after the last cell has run."""

from test_notebooks import run_to_the_end

MOVE = """
*controls, caption, window = tile_explorer.children
assert all(control.description for control in controls)
views = [bytes(window.value)]
for control, value in zip(controls, (2, 0.3), strict=True):
    control.value = value
    views.append(bytes(window.value))
assert len(set(views)) == 3 and all(view.startswith(b"\\xff\\xd8") for view in views)
own = Predictor.from_weights(device="cpu", tiles=2)
assert caption.value == f"{len(own(colosseum, threshold=0.3).labels)} detections"
"""


def test_a_move_of_a_slider_redraws_after_the_last_cell(tmp_path):
    run_to_the_end("09", tmp_path, MOVE)
