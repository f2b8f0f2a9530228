"""Diagrams of both presets, drawn by the cells of notebook 03 that have the tag "architecture":

    python docs/make_architectures.py

Writes architecture_article.svg and architecture_pyramid.svg; shapes and parameter counts come from the networks.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))
from odutils.files import replacing  # noqa: E402
from odutils.inference import Predictor  # noqa: E402
from odutils.plots import set_style  # noqa: E402
from odutils.presets import build  # noqa: E402

NOTEBOOK = DOCS.parent / "nbs" / "03_model.ipynb"
PRESETS = ("article", "pyramid")  # in the order of their figures in the notebook


def figures() -> list[plt.Figure]:
    """The figures that the tagged cells draw, with the names that they find in the notebook."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    tagged = ["".join(cell["source"]) for cell in cells if "architecture" in cell["metadata"].get("tags", [])]
    detectors = {"article": build("article"), "pyramid": Predictor.from_weights(device="cpu").detector}
    exec("\n".join(tagged).replace("plt.show()", ""), {"torch": torch, "plt": plt, **detectors})
    return [plt.figure(number) for number in plt.get_fignums()]


def main(folder: Path = DOCS) -> None:
    plt.close("all")
    set_style()
    with plt.rc_context({"svg.hashsalt": "odutils"}):
        for preset, figure in zip(PRESETS, figures(), strict=True):
            with replacing(folder / f"architecture_{preset}.svg") as temporary:
                figure.savefig(temporary, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close("all")


if __name__ == "__main__":
    main()
