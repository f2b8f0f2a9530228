"""Protects progress bars: terminals and notebooks get them, pipes and files get nothing, and no one sees a warning."""

import subprocess
import sys

import pytest

from odutils.progress import bar


@pytest.mark.parametrize("terminal, show, seen", [(True, True, True), (True, False, False), (False, True, False)])
def test_who_gets_a_bar(capsys, monkeypatch, terminal, show, seen):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(bar(range(3), unit="images", show=show)) == [0, 1, 2]
    captured = capsys.readouterr()
    assert ("3/3" in captured.err) == ("images/s" in captured.err) == seen and not captured.out


def test_bytes_are_shown_as_megabytes(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bar(total=5_000_000, unit="B") as shown:
        shown.update(5_000_000)
    assert "5.00M/5.00M" in capsys.readouterr().err


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_gets_a_bar_without_a_warning(widgets):
    """With ipywidgets a widget, which needs a kernel; without them text, where tqdm itself would warn."""
    script = f"""
import sys, types, warnings, IPython
warnings.simplefilter("error")
sys.modules["ipykernel.zmqshell"] = types.ModuleType("ipykernel.zmqshell")
IPython.get_ipython = lambda: types.SimpleNamespace(config={{"IPKernelApp": {{}}}})  # old versions of tqdm ask it
if not {widgets}:
    sys.modules["ipywidgets"] = None
from odutils.progress import bar
with bar(total=2, unit="images") as shown:
    print("widget" if hasattr(shown, "container") else "text", shown.disable)
    shown.update(2)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert f"{'widget' if widgets else 'text'} False" in done.stdout, done
    assert "Warning" not in done.stderr and (widgets or "2/2" in done.stderr)
