"""Protects what notebook 07 shows where it is only read, as on GitHub: motion, and a still in each player."""

import base64
import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "nbs" / "07_video.ipynb"


@pytest.fixture(scope="module")
def outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    return [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]


def test_animations_are_stored_and_small(outputs):
    # Stored as image/png, because some viewers don't know image/gif; the bytes are a GIF, so they still animate.
    shown = [base64.b64decode("".join(data["image/png"])) for data in outputs if "image/png" in data]
    gifs = [image for image in shown if image.startswith(b"GIF")]
    assert len(gifs) == 2 and not [data for data in outputs if "image/gif" in data]
    assert all(gif.startswith(b"GIF89a") and len(gif) < 400_000 for gif in gifs)


def test_a_player_shows_a_frame_before_the_notebook_is_run(outputs):
    players = ["".join(data["text/html"]) for data in outputs if "<video" in "".join(data.get("text/html", ""))]
    assert len(players) == 2
    assert all('poster="data:image/jpeg;base64,' in player and 'src="runs/' in player for player in players)
