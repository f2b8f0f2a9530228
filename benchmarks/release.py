"""From the best weights of a training to those that come with the project: scores, threshold, file, model card.

    python benchmarks/release.py runs/train/best.safetensors --data ../shared/photos          # only tells
    python benchmarks/release.py runs/train/best.safetensors --data ../shared/photos --write  # and writes data/weights

The threshold is the lowest of those tried at which three of four boxes that a person sees on the split are right.
`--write` puts the weights, scores.json and the tables of data/weights/README.md in place; what that card says in
words about recipe and failures has to be written by hand, by someone who has looked at the images. `--also` names
splits that are scored for comparison: nothing is chosen on them.
"""

import argparse
import contextlib
import io
import json
from pathlib import Path

from sources import short

from odutils.bootstrap import measure as measure_chance
from odutils.datasets import CocoDetections
from odutils.evaluation import operating_points, predict, score_by_source
from odutils.files import DATA, replacing
from odutils.inference import Predictor
from odutils.presets import load_detector, save_detector
from odutils.weights import load_weights

THRESHOLDS = [percent / 100 for percent in range(10, 71)]
PRECISION = 0.75  # of what is drawn
SHOWN = (0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.6)  # thresholds in the card's table
CARD = DATA / "weights" / "README.md"


def measure(detector, dataset: CocoDetections) -> dict:
    """What scores.json holds of a split."""
    predictor = Predictor(detector)
    results = predict(predictor, dataset)
    points = operating_points(dataset, predict(predictor, dataset, class_agnostic=True), THRESHOLDS)
    chosen = next((point for point in points if point["precision"] >= PRECISION), points[-1])
    scores = {"scores": score_by_source(dataset, results), "operating_points": points, "threshold": chosen}
    scores["chance"] = {
        part: {k: v[0][1] for k, v in of.items()} for part, of in measure_chance(dataset, [results]).items()
    }
    voc = [id_ for id_ in dataset.ids if str(dataset.coco.imgs[id_].get("source")).startswith("voc")]
    return scores | ({"voc_ap50_by_plain_pycocotools": plain_ap50(dataset, results, voc)} if voc else {})


def plain_ap50(dataset: CocoDetections, results: list[dict], image_ids: list[int]) -> float:
    """AP50 by pycocotools as it is: it knows nothing of difficult objects, and counts those that are not found."""
    from pycocotools.cocoeval import COCOeval

    labelled = dataset.known(dataset.ids.index(image_ids[0]))
    categories = [id_ for id_, label in dataset.label_of.items() if labelled[label - 1]]
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(dataset.coco, dataset.coco.loadRes([dict(r) for r in results]), "bbox")
        evaluation.params.imgIds, evaluation.params.catIds = sorted(image_ids), sorted(categories)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[1])


def score_rows(measured: dict[str, dict], datasets: dict[str, CocoDetections]) -> str:
    """Of each split its parts, with the 95 % interval of AP and AP50, and the whole of it."""
    lines = ["| | AP | AP50 | AP75 | small | medium | large |", "|---|---|---|---|---|---|---|"]
    for split, dataset in datasets.items():
        scores, counts = measured[split]["scores"], {}
        for image in dataset.coco.imgs.values():
            counts[image.get("source")] = counts.get(image.get("source"), 0) + 1
        for source, metrics in scores["by_source"].items():
            index = next(i for i in range(len(dataset)) if dataset.source(i) == source)
            name = (
                f"`{split}`, {short(source)} part: {counts[source]} images, {int(dataset.known(index).sum())} classes"
            )
            lines.append(row_of(name, metrics, measured[split]["chance"][source]))
        lines.append(row_of(f"`{split}`, all {len(dataset):,} images", scores["all"], {}))
    return "\n".join(lines) + "\n"


def row_of(name: str, metrics: dict, halves: dict) -> str:
    cells = [f"{v:.3f}" + (f" ± {halves[k]:.3f}" if k in halves else "") for k, v in metrics.items()]
    return f"| {name} | " + " | ".join(cells) + " |"


def threshold_rows(measured: dict) -> str:
    chosen = measured["threshold"]["threshold"]
    lines = ["| threshold | precision | recall | boxes an image |", "|---|---|---|---|"]
    for point in measured["operating_points"]:
        if point["threshold"] in SHOWN or point["threshold"] == chosen:
            name = f"{point['threshold']:g}" + (" (default)" if point["threshold"] == chosen else "")
            lines.append(f"| {name} | {point['precision']:.2f} | {point['recall']:.2f} | {point['boxes']:.1f} |")
    return "\n".join(lines) + "\n"


def class_rows(measured: dict, columns: int = 4) -> str:
    ranked = sorted(measured["scores"]["by_class"].items(), key=lambda item: (-item[1], item[0]))
    cells = [f"{name} {value:.2f}" for name, value in ranked]
    cells += [""] * (-len(cells) % columns)
    rows = (cells[first : first + columns] for first in range(0, len(cells), columns))
    return (
        "\n".join(["|" + " |" * columns, "|" + "---|" * columns, *("| " + " | ".join(r) + " |" for r in rows)]) + "\n"
    )


def fill(card: str, name: str, content: str) -> str:
    """Replace what stands between `<!-- name -->` and the next `<!-- end -->`."""
    before, rest = card.split(f"<!-- {name} -->\n", 1)
    return before + f"<!-- {name} -->\n" + content + "<!-- end -->\n" + rest.split("<!-- end -->\n", 1)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev_large", help="on which the threshold is chosen")
    parser.add_argument("--also", nargs="*", default=["dev"], metavar="SPLIT", help="to be scored, too")
    parser.add_argument("--size", type=int, help="px of the longer side (default: as in training)")
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    detector = load_detector(args.weights)
    detector.settings = detector.settings._replace(size=args.size or detector.settings.size)
    about = detector.settings
    splits = [args.split, *args.also]
    datasets = {split: CocoDetections(args.data, split, about.size, classes=about.classes) for split in splits}
    measured = {split: measure(detector, dataset) for split, dataset in datasets.items()}
    chosen = measured[args.split]
    print(score_rows(measured, datasets), threshold_rows(chosen), sep="\n")
    if args.write:
        kept = {
            k: v for k, v in load_weights(args.weights)[1].items() if k in ("epoch", "steps", "recipe", "trained_on")
        }
        detector.settings = about._replace(threshold=chosen["threshold"]["threshold"])
        scores = {k: chosen["scores"][k] for k in ("all", "by_source")}
        save_detector(DATA / "weights" / "pyramid.safetensors", detector, scores=scores, **kept)
        with replacing(DATA / "weights" / "scores.json") as temporary:
            temporary.write_text(json.dumps(measured, indent=1) + "\n")
        card = CARD.read_text()
        tables = {"scores": score_rows(measured, datasets), "thresholds": threshold_rows(chosen)}
        for name, content in (tables | {"classes": class_rows(chosen)}).items():
            card = fill(card, name, content)
        with replacing(CARD) as temporary:
            temporary.write_text(card)


if __name__ == "__main__":
    main()
