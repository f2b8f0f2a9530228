"""Protects the architecture diagrams: cells of notebook 03 draw both presets, and the shapes are the networks' own."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch):
    pytest.importorskip("fastai")
    pytest.importorskip("timm")
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import make_architectures

    return make_architectures


def texts(figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.filterwarnings("ignore")  # of fastai and timm, when they are imported
def test_shapes_and_counts_are_those_of_the_networks(script):
    article, pyramid = (texts(figure) for figure in script.figures())
    script.plt.close("all")
    assert "logits\n3150 × 80\noffsets\n3150 × 4" in article
    assert any("3600 × 7 × 7,  8,298 k" in text for text in article)  # (3 · 3 · 256 + 1) · 45 · 80
    assert any("1280 × 13 × 13" in text for text in pyramid)
    assert len([text for text in pyramid if "class tower, shared\n80 × " in text]) == 4  # one block for each map


@pytest.mark.filterwarnings("ignore")
def test_both_diagrams_are_written_and_twice_the_same(script, tmp_path):
    written = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        script.main(tmp_path / folder)
        written.append({path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()})
    assert written[0].keys() == {"architecture_article.svg", "architecture_pyramid.svg"}
    assert written[0] == written[1]
