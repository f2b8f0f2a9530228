"""The table and the plot of the race, from results/race/*.json into benchmarks/README.md; a short one into README.md.

python benchmarks/race_table.py
"""

import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
from entrants import ENTRANTS
from sources import short

from odutils.files import replacing
from odutils.plots import COLOURS, set_style

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- race -->\n", "<!-- end of race -->\n"
WHOLE = 6  # the first entrants are detectors of their own, the last of them `pyramid`; the others change a part of it


def read_results(folder: Path = HERE / "results" / "race") -> dict[str, list[dict]]:
    """{entrant: its results, one a seed}, in the order of the race."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {name: runs for name in ENTRANTS if (runs := [r for r in results if r["entrant"] == name])}


def mean_of(runs: list[dict], source: str, metric: str) -> float:
    return statistics.mean(run["scores"]["by_source"][source][metric] for run in runs)


def table(results: dict[str, list[dict]]) -> str:
    """Markdown, a row for each entrant."""
    sources = list(next(iter(results.values()))[0]["scores"]["by_source"])
    columns = ["", *(f"{short(s)} AP / AP50" for s in sources), "machine", "seeds", "CPU minutes", "images seen"]
    columns += ["memory, MB", "parameters, M", "multiplications, M", "predicting, CPU ms an image"]
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for name, runs in results.items():
        first = runs[0]
        scores = [f"{mean_of(runs, s, 'AP'):.3f} / {mean_of(runs, s, 'AP50'):.3f}" for s in sources]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        costs = [f"{first['cpu_minutes']:.1f}", f"{first['images_seen']:,}", f"{first['training_memory_mb']:,}"]
        costs += [f"{first['parameters'] / 1e6:.1f}", f"{first['multiplications'] / 1e6:,.0f}", first["predict_cpu_ms"]]
        what = first["what"] if name != "pyramid" else f"**{first['what']}**"
        machine = first["machine"].split(",")[0]
        rows.append("| " + " | ".join([what, *scores, machine, seeds, *map(str, costs)]) + " |")
    return "\n".join(rows) + "\n"


def short_table(results: dict[str, list[dict]]) -> str:
    """Markdown for the project's README: the whole detectors and their AP50."""
    sources = list(next(iter(results.values()))[0]["scores"]["by_source"])
    columns = ["", *(f"AP50, {short(source)} part" for source in sources), "parameters"]
    rows = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    for runs in (results[name] for name in whole_of(results)):
        scores = [f"{mean_of(runs, source, 'AP50'):.3f}" for source in sources]
        rows.append("| " + " | ".join([runs[0]["what"], *scores, f"{runs[0]['parameters'] / 1e6:.1f} M"]) + " |")
    return "\n".join(rows) + "\n"


def whole_of(results: dict[str, list[dict]]) -> list[str]:
    return [name for name in results if name in list(ENTRANTS)[:WHOLE]]


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """AP50 of both parts: the whole detectors on the left, what each part of ours is worth on the right."""
    set_style()
    sources = list(next(iter(results.values()))[0]["scores"]["by_source"])
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    whole = whole_of(results)
    parts = ["pyramid", *(name for name in results if name not in whole)]
    groups = ((whole, "the same minutes, the same images"), (parts, "one thing changed"))
    for axis, (group, title) in zip(axes, groups, strict=True):
        for row, (source, colour) in enumerate(zip(sources, COLOURS.values(), strict=False)):
            places = [place + (row - 0.5) * 0.38 for place in range(len(group))]
            values = [mean_of(results[name], source, "AP50") for name in group]
            bars = axis.barh(places, values, height=0.36, color=colour, label=f"{short(source)} part")
            axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
        axis.set_yticks(range(len(group)), [results[name][0]["what"].replace("`", "") for name in group])
        axis.invert_yaxis()
        axis.set_xlabel("AP50 on dev")
        axis.set_title(title, loc="left")
        axis.margins(x=0.12)
    axes[0].legend(frameon=False, loc="upper right")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="jpeg")
    plt.close(figure)


def between(text: str) -> str:
    """What stands between the two marks of a README."""
    return text.split(BEGIN)[1].split(END)[0]


def main():
    results = read_results()
    plot(results, HERE / "race.jpg")
    for readme, rows in ((HERE / "README.md", table(results)), (HERE.parent / "README.md", short_table(results))):
        text = readme.read_text()
        with replacing(readme) as temporary:
            temporary.write_text(text.replace(BEGIN + between(text) + END, BEGIN + rows + END))


if __name__ == "__main__":
    main()
