"""The tables and the plot of the race, from results/race*/*.json into benchmarks/README.md; a short one into README.md.

What notebook 09 shows of the race goes to data/experiments/race.json.

python benchmarks/race_table.py
"""

import json
import statistics
from pathlib import Path

import matplotlib.pyplot as plt
from entrants import ENTRANTS
from sources import short

from odutils.files import DATA, replacing
from odutils.plots import COLOURS, set_style

HERE = Path(__file__).resolve().parent
BY_EPOCHS, BY_MINUTES = HERE / "results" / "race_by_epochs", HERE / "results" / "race"
END = "<!-- end of race -->\n"
FOR_NOTEBOOK = DATA / "experiments" / "race.json"  # beside the data, so that notebook 09 finds it in a wheel, too
WHOLE = 7  # the first entrants are detectors of their own, the last of them ours; the others change a part of `pyramid`


def read_results(folder: Path) -> dict[str, list[dict]]:
    """{entrant: its results, one a seed}, in the order of the race."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {name: runs for name in ENTRANTS if (runs := [r for r in results if r["entrant"] == name])}


def mean_of(runs: list[dict], source: str, metric: str) -> float:
    return statistics.mean(run["scores"]["by_source"][source][metric] for run in runs)


def name_of(entrant: str) -> str:
    what = ENTRANTS[entrant][0]
    return what if entrant != "pyramid" else f"**{what}**"


def sources_of(results: dict[str, list[dict]]) -> list[str]:
    return list(next(iter(results.values()))[0]["scores"]["by_source"])


def markdown(columns: list[str], rows: list[list]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def table(results: dict[str, list[dict]]) -> str:
    """Of the race by epochs, a row for each entrant."""
    sources, rows = sources_of(results), []
    for name, runs in results.items():
        first = runs[0]
        scores = [f"{mean_of(runs, s, 'AP'):.3f} / {mean_of(runs, s, 'AP50'):.3f}" for s in sources]
        costs = [f"{first['parameters'] / 1e6:.1f}", f"{first['multiplications'] / 1e6:,.0f}"]
        on_gpu = first["device"] != "cpu"
        memory = first["gpu_memory_mb"] if on_gpu else first["training_memory_mb"]
        minutes = first["wall_minutes"] if on_gpu else first["cpu_minutes"]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        devices = " and ".join(sorted({f"{run['device'].removeprefix('NVIDIA ')}, {run['precision']}" for run in runs}))
        rows.append([name_of(name), *scores, seeds, *costs, devices, f"{minutes:.1f}", f"{memory:,}"])
    columns = ["", *(f"{short(s)} AP / AP50" for s in sources), "seeds", "parameters, M", "multiplications, M"]
    return markdown([*columns, "trained on", "minutes", "memory, MB"], rows)


def sprint_table(results: dict[str, list[dict]]) -> str:
    """Of the race by minutes."""
    sources, rows = sources_of(results), []
    for name, runs in results.items():
        scores = [f"{mean_of(runs, source, 'AP50'):.3f}" for source in sources]
        seeds = ", ".join(str(run["seed"]) for run in runs)
        rows.append([name_of(name), *scores, seeds, f"{runs[0]['images_seen']:,}"])
    return markdown(["", *(f"{short(s)} AP50" for s in sources), "seeds", "images seen"], rows)


def short_table(results: dict[str, list[dict]]) -> str:
    """For the project's README: the whole detectors of the race by epochs and their AP50."""
    sources = sources_of(results)
    columns = ["", *(f"AP50, {short(source)} part" for source in sources), "parameters"]
    rows = []
    for name in whole_of(results):
        scores = [f"{mean_of(results[name], source, 'AP50'):.3f}" for source in sources]
        rows.append([name_of(name), *scores, f"{results[name][0]['parameters'] / 1e6:.1f} M"])
    return markdown(columns, rows)


def whole_of(results: dict[str, list[dict]]) -> list[str]:
    return [name for name in results if name in list(ENTRANTS)[:WHOLE]]


def plot(results: dict[str, list[dict]], path: Path) -> None:
    """AP50 of both parts: the whole detectors on the left, what each part of ours is worth on the right."""
    set_style()
    sources = sources_of(results)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    whole = whole_of(results)
    parts = ["pyramid", *(name for name in results if name not in whole)]
    groups = ((whole, "whole detectors, the same images"), (parts, "one thing changed"))
    for axis, (group, title) in zip(axes, groups, strict=True):
        for row, (source, colour) in enumerate(zip(sources, COLOURS.values(), strict=False)):
            places = [place + (row - 0.5) * 0.38 for place in range(len(group))]
            values = [mean_of(results[name], source, "AP50") for name in group]
            bars = axis.barh(places, values, height=0.36, color=colour, label=f"{short(source)} part")
            axis.bar_label(bars, fmt="%.3f", padding=3, fontsize=8)
        axis.set_yticks(range(len(group)), [ENTRANTS[name][0].replace("`", "") for name in group])
        axis.invert_yaxis()
        axis.set_xlabel("AP50 on dev")
        axis.set_title(title, loc="left")
        axis.margins(x=0.12)
    axes[0].legend(frameon=False, loc="upper right", fontsize=9, bbox_to_anchor=(1.02, 1.02))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=130, format="jpeg")
    plt.close(figure)


def between(text: str, mark: str) -> str:
    """What stands between `<!-- mark -->` and the end of that table in a README."""
    return text.split(f"<!-- {mark} -->\n")[1].split(END)[0]


def tables() -> dict[tuple[Path, str], str]:
    """{(README, its mark): what belongs there}."""
    by_epochs, by_minutes = read_results(BY_EPOCHS), read_results(BY_MINUTES)
    return {
        (HERE / "README.md", "race"): table(by_epochs),
        (HERE / "README.md", "sprint"): sprint_table(by_minutes),
        (HERE.parent / "README.md", "race"): short_table(by_epochs),
    }


def for_notebook() -> dict:
    """{"race_by_epochs" or "race": {entrant: [{"seed": …, "scores": {source: metrics}}, …]}} of four entrants."""
    content = {}
    for folder in (BY_EPOCHS, BY_MINUTES):
        runs_of = {
            name: runs
            for name, runs in read_results(folder).items()
            if name in ("pyramid", "points", "task_aligned", "fine")
        }
        content[folder.name] = {
            name: [{"seed": run["seed"], "scores": run["scores"]["by_source"]} for run in runs]
            for name, runs in runs_of.items()
        }
    return content


def main():
    plot(read_results(BY_EPOCHS), HERE / "race.jpg")
    with replacing(FOR_NOTEBOOK) as temporary:
        temporary.write_text(json.dumps(for_notebook(), indent=1) + "\n")
    for (readme, mark), rows in tables().items():
        text = readme.read_text()
        with replacing(readme) as temporary:
            begin = f"<!-- {mark} -->\n"
            temporary.write_text(text.replace(begin + between(text, mark) + END, begin + rows + END))


if __name__ == "__main__":
    main()
