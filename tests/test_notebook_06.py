"""Protects notebook 06's controls: they work after the last cell, and a wrong input is answered in one line.

The notebook runs once. A last cell then moves every control and tries every wrong input; it prints what it saw.
"""

import json

import pytest
from test_notebooks import code_cells, run_to_the_end, source, with_number

PATH = with_number("06")
LAST = r"""
from contextlib import redirect_stdout
from pathlib import Path

seen = {"views": {}, "labels": [], "lines": {}, "upload": []}


def views_of(panel, moves):
    # The bytes shown at first and after each move of a control.
    *controls, view = panel.children
    seen["labels"] += [control.description for control in controls]
    views = [bytes(view.value)]
    for index, value in moves:
        controls[index].value = value
        views.append(bytes(view.value))
    return len(views), len(set(views)), all(view.startswith(b"\xff\xd8") for view in views)


seen["views"]["steps of NMS"] = views_of(nms_panel, [(0, 1), (0, 2)])
seen["views"]["thresholds"] = views_of(threshold_panel, [(1, 0.1), (2, 0.9), (0, "cows")])

Path("text.jpg").write_text("no image at all")
Path("page.html").write_text("<!DOCTYPE html><html><body>a page</body></html>")
Path("cut.jpg").write_bytes(cat.read_bytes()[:2000])
page, cut = Path("page.html").resolve().as_uri(), Path("cut.jpg").resolve().as_uri()
WRONG = ["text.jpg", "cut.jpg", "missing.jpg", "~/no/such/file.jpg", ".", page, cut, "https://no-such-host.invalid/a.jpg",
         "http://127.0.0.1:9/a.jpg", "http://[", "nonsense://a.jpg"]  # fmt: skip
cells = [(cell, mine) for mine in WRONG for cell in [MINE_CELL.replace('MINE = ""', f"MINE = {mine!r}", 1)]]
cells += [(CAMERA_CELL.replace("CAMERA = False", "CAMERA = True", 1), "camera")]
cells += [(ARTICLE_CELL.replace('ARTICLE = ""', f"ARTICLE = {bad!r}", 1), bad) for bad in ("no id", "https://a.b/c")]
for text, name in cells:
    with redirect_stdout(io.StringIO()) as output:
        exec(text, globals())
    seen["lines"][name] = output.getvalue()

button, message, view = upload_panel.children


def upload(name, content):
    button.value = ({"name": name, "type": "", "size": len(content), "content": memoryview(content),
                     "last_modified": __import__("datetime").datetime(2026, 1, 1)},)  # fmt: skip
    seen["upload"].append((message.value, len(view.value), view.layout.display))


upload("kitten.jpg", cat.read_bytes())
upload("text.jpg", b"no image at all")
upload("kitten.jpg", cat.read_bytes())
upload("page.jpg", b"<html><body>a page</body></html>")
upload("cut.jpg", cat.read_bytes()[:2000])
seen["home"] = os.path.expanduser("~")
print("SEEN" + json.dumps(seen))
"""


def cell_with(text: str) -> str:
    return next(source(cell) for cell in code_cells(PATH) if text in source(cell))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    cells = {"MINE_CELL": 'MINE = ""', "CAMERA_CELL": "CAMERA = False", "ARTICLE_CELL": 'ARTICLE = ""'}
    given = "".join(f"{name} = {cell_with(text)!r}\n" for name, text in cells.items())
    *_, last = run_to_the_end("06", tmp_path_factory.mktemp("06"), given + LAST)
    printed = "".join(output.get("text", "") for output in last.outputs)
    return json.loads(printed.split("SEEN", 1)[1])


@pytest.mark.parametrize("panel", ["steps of NMS", "thresholds"])
def test_every_move_of_a_control_redraws_after_the_last_cell(seen, panel):
    moves, different, are_jpegs = seen["views"][panel]
    assert moves == different and are_jpegs


def test_every_control_has_a_label(seen):
    assert len(seen["labels"]) == 4 and all(seen["labels"])


def test_a_wrong_input_is_answered_in_one_line(seen):
    assert len(seen["lines"]) == 14
    for name, output in seen["lines"].items():
        assert output.count("\n") == 1 and output.strip() and "Traceback" not in output, name


def test_the_line_says_what_is_wrong(seen):
    lines = seen["lines"]
    assert "no such file" in lines["missing.jpg"]
    assert lines["~/no/such/file.jpg"].startswith(seen["home"])  # ~ is expanded
    assert "cannot be downloaded" in lines["https://no-such-host.invalid/a.jpg"]
    assert "Colab" in lines["camera"]
    assert any("web page" in line for name, line in lines.items() if name.endswith("page.html"))


def test_a_broken_upload_takes_the_previous_image_away(seen):
    good, text, again, page, cut = seen["upload"]
    for message, size, display in (good, again):
        assert "detections" in message and size > 1000 and not display
    for message, size, display in (text, page, cut):
        assert message.count("\n") == 0 and ".jpg: " in message and size == 0 and display == "none"
    assert "web page" in page[0]
