"""Protects notebook 02's controls: they must still work after the notebook's last cell, and show what they count."""

from test_notebooks import run_to_the_end

MOVE = """
choice, threshold, count, view = explorer.children
assert choice.description and threshold.description
before = bytes(view.value), count.value
assert before[0].startswith(b"\\xff\\xd8")  # a JPEG

threshold.value = 0.3
lower = bytes(view.value), count.value
assert lower[0] != before[0] and lower[1] != before[1]
assert int(lower[1].split()[-1]) > int(before[1].split()[-1])  # a lower threshold leaves more positives

shown = {lower[0]}
for name in choice.options:
    choice.value = name
    shown.add(bytes(view.value))
    assert int(count.value.split()[-1]) >= 1  # rule 2: no object is without a positive
assert len(shown) == len(choice.options)
"""


def test_both_controls_redraw_after_the_last_cell(tmp_path):
    run_to_the_end("02", tmp_path, MOVE)
