"""Protects the notebooks as files, and as a stranger runs them in Colab: alone in an empty folder, without `odutils`.

`pytest --nbmake nbs` runs them where they lie. Here they run twice, side by side, and must give the same numbers.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
TIMED = re.compile(r"\b(ms|µs|s|seconds?|minutes?|hours?|days|[kMG]B|a second)\b")  # what no two runs have in common
FAKE_COLAB = {
    "__init__.py": "",
    "output.py": "def eval_js(code):\n    raise RuntimeError('no browser is open')\n",
    "files.py": "def upload():\n    return {}\n",
}

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def source(cell):
    return "".join(cell["source"])


def answers_in(cell) -> list[str]:
    """The code of each closed answer in a markdown cell, as a reader would copy it; "" for an answer in words."""
    if cell["cell_type"] != "markdown":
        return []
    closed = re.findall(r"<details>\s*<summary>Answer.*?</summary>(.*?)</details>", source(cell), re.S)
    return ["\n".join(re.findall(r"^```python\n(.*?)^```", answer, re.S | re.M)) for answer in closed]


# ---- as files


def test_all_are_here():
    assert [path.stem[:2] for path in NOTEBOOKS] == "01 02 03 04 05 06 07 08 09 10".split()


@pytest.fixture
def common(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "nbs"))
    import setup_cell

    return setup_cell


@each_notebook
def test_badge_first_cell_and_reading_time_are_the_common_ones(path, common):
    notebook = json.loads(path.read_text())
    common.set_up(notebook, path.name)
    assert notebook == json.loads(path.read_text()), "run: python nbs/setup_cell.py"
    minutes = common.minutes_to_read(notebook)
    assert f"**Time:** {minutes} minutes to read" in source(notebook["cells"][0])
    assert f"(nbs/{path.name})<br>{minutes} minutes" in (ROOT / "README.md").read_text()
    assert len([line for line in common.setup_cell().splitlines() if line.strip()]) < 10


def test_the_badge_opens_the_notebook_of_the_repository(common):
    link = "https://colab.research.google.com/github/me/odutils/blob/main/nbs/02_anchors.ipynb"
    assert common.badge("02_anchors.ipynb", "https://github.com/me/odutils.git").endswith(f"]({link})")


def test_the_reading_time_counts_words_and_lines_of_code(common):
    prose, code = (
        {"cell_type": "markdown", "source": ["word " * 3000]},
        {"cell_type": "code", "source": ["a\n\n"] * 200},
    )
    assert common.minutes_to_read({"cells": [prose, code]}) == 3000 // 200 + 200 // 20


@pytest.mark.parametrize("theirs, used", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_the_first_cell_keeps_waiting_threads_from_spinning(theirs, used):
    """OpenMP reads the policy when torch is imported, so the cell must not import it, nor overrule the reader's."""
    script = source(code_cells(NOTEBOOKS[0])[0]) + "\nprint(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    environment |= {"OMP_WAIT_POLICY": theirs} if theirs else {}
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT / "nbs", env=environment, capture_output=True, text=True
    )
    assert ran.stdout.split() == [used, "False"], ran.stderr


@each_notebook
def test_committed_as_a_reader_wants_it(path):
    cells = code_cells(path)
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert path.stat().st_size < 1e6
    assert all(cell["execution_count"] for cell in cells if source(cell).strip())
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    lengths = sorted(len([line for line in source(cell).splitlines() if line.strip()]) for cell in cells)
    assert lengths[len(lengths) // 2] < 8


@each_notebook
def test_every_exercise_has_a_closed_answer(path):
    cells = json.loads(path.read_text())["cells"]
    exercises = [cell for cell in cells if re.search(r"^\*\*Exercise \d", source(cell), re.M)]
    assert sum(len(re.findall(r"^\*\*Exercise \d", source(cell), re.M)) for cell in exercises) == 3
    answers = [answer for cell in cells for answer in answers_in(cell)]
    assert len(answers) >= 3 and sum(bool(code) for code in answers) >= 2
    assert not [cell for cell in cells if "answer" in cell["metadata"].get("tags", [])]  # an open cell


@each_notebook
def test_the_pipeline_is_shown_with_this_part_lit(path):
    assert [cell for cell in code_cells(path) if f'draw_pipeline(LIT_IN["{path.name[:2]}"])' in source(cell)]


def test_the_glossary_is_that_of_the_notebooks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    from make_glossary import make_glossary

    assert (ROOT / "docs" / "glossary.md").read_text() == make_glossary(), "run: python docs/make_glossary.py"


# ---- as Colab runs them


@pytest.fixture(scope="session")
def colab(tmp_path_factory):
    """A Python that has all packages but `odutils`, believes to be in Colab, and takes `odutils` from a git address."""
    if not shutil.which("git"):
        pytest.skip("git is needed to install from a repository")
    folder = tmp_path_factory.mktemp("colab")
    repository, python = folder / "odutils", folder / "python"
    for name, without in (("odutils", ["__pycache__"]), ("data", ["sample", "coco_2017"])):
        shutil.copytree(ROOT / name, repository / name, ignore=shutil.ignore_patterns(*without))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)
    git = ["git", "-C", repository, "-c", "user.name=test", "-c", "user.email=test@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "as it is"]):
        subprocess.run([*git, *command], check=True)

    venv.create(python, symlinks=os.name != "nt")
    binary = python / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([binary, "-c", script], capture_output=True, text=True, check=True).stdout.strip())
    for name, text in FAKE_COLAB.items():
        (site / "google/colab").mkdir(parents=True, exist_ok=True)
        (site / "google/colab" / name).write_text(text)
    # The plain path of this Python's packages: its own .pth files, with our editable install, are not read.
    (site / "colab.pth").write_text(f"{sysconfig.get_path('purelib')}\nimport google.colab\n")
    kernel = folder / "share/jupyter/kernels/python3"
    kernel.mkdir(parents=True)
    command = [str(binary), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "Colab", "language": "python"}))
    environment = {
        "JUPYTER_PATH": str(folder / "share/jupyter"),
        "ODUTILS_REPOSITORY": repository.as_uri(),
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say: build with the setuptools that is here, without a download
        "PIP_NO_INDEX": "1",
        "OMP_NUM_THREADS": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTHONPATH", "PYTEST_CURRENT_TEST"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        yield binary


async def run_alone(
    path: Path, folder: Path, replace: tuple[str, str] = ("", ""), cells: int | None = None, then: str = ""
) -> list:
    """Run a notebook (its first code cells only), answers included, alone in a new folder; returns its code cells.

    then: a last cell, as a reader might add one to move a control.
    """
    import nbformat
    from nbclient import NotebookClient

    folder.mkdir(parents=True)
    notebook, code = nbformat.read(path, 4), []
    for cell in notebook.cells:
        answers = [nbformat.v4.new_code_cell(answer) for answer in answers_in(cell) if answer]
        code += [cell] if cell.cell_type == "code" else answers
    notebook.cells = code[:cells] + ([nbformat.v4.new_code_cell(then)] if then else [])
    for cell in notebook.cells:
        cell.source = cell.source.replace(*replace) if replace[0] else cell.source
    resources = {"metadata": {"path": str(folder)}}
    await NotebookClient(notebook, timeout=900, kernel_name="python3", resources=resources).async_execute()
    return notebook.cells


def run_to_the_end(number: str, folder, then: str) -> list:
    """Run notebook `number` as `run_alone` does, in a new folder below `folder`, with the cell `then` as its last."""
    return asyncio.run(run_alone(with_number(number), folder / "content", then=then))


def with_number(number: str):
    return next(path for path in NOTEBOOKS if path.name.startswith(number))


def numbers(cells: list) -> list[str]:
    """What each cell printed, without the lines that tell times, speeds or memory."""
    printed = []
    for cell in cells:
        texts = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
        lines = "".join(texts).splitlines()
        printed.append("\n".join(line for line in lines if not TIMED.search(line) and " at 0x" not in line))
    return printed


@pytest.fixture(scope="session")
def installed(colab, tmp_path_factory):
    """The first cell has been run in Colab, in an empty folder."""
    asyncio.run(run_alone(NOTEBOOKS[0], tmp_path_factory.mktemp("first") / "content", cells=1))
    return colab


def test_the_first_cell_installs_odutils_and_nothing_that_is_there(installed, tmp_path):
    script = (
        "import json, sys, google.colab, numpy, torch, torchvision, odutils\n"
        "from odutils.files import DATA\n"
        "from odutils.inference import Predictor\n"
        "Predictor.from_weights()\n"
        "print(json.dumps([m.__file__ for m in (odutils, numpy, torch, torchvision)] + [str(DATA), sys.prefix]))"
    )
    ran = subprocess.run([installed, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    odutils, *others, data, prefix = json.loads(ran.stdout.splitlines()[-1])
    assert odutils.startswith(prefix) and data.startswith(prefix)
    assert not [file for file in others if file.startswith(prefix)]


@each_notebook
def test_twice_alone_in_colab_the_same_numbers(path, installed, tmp_path):
    async def both():
        return await asyncio.gather(*(run_alone(path, tmp_path / name) for name in ("one", "two")))

    first, second = asyncio.run(both())
    assert numbers(first) == numbers(second)
    assert any(numbers(first))


@pytest.mark.parametrize("path", [path for path in NOTEBOOKS if "INFERENCE_ONLY = False" in path.read_text()], ids=str)
def test_inference_only_is_green_in_colab(path, installed, tmp_path):
    asyncio.run(run_alone(path, tmp_path / "content", ("INFERENCE_ONLY = False", "INFERENCE_ONLY = True")))
