"""Intervals of AP by the bootstrap, and of the difference of two detectors: see odutils/bootstrap.py.

    python benchmarks/bootstrap.py A.safetensors --data ../shared/photos --split dev_large
    python benchmarks/bootstrap.py A.safetensors B.safetensors --data ../shared/photos --split dev_large

In place of a weights file, a .json file may hold COCO results.
"""

import argparse
from pathlib import Path

from sources import short

from odutils.bootstrap import DRAWS, measure
from odutils.coco.results import read_results
from odutils.datasets import CocoDetections
from odutils.evaluation import predict
from odutils.inference import Predictor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detectors", nargs="+", type=Path, metavar="FILE", help="one or two: weights, or COCO results")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev_large")
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args()
    if len(args.detectors) > 2:
        parser.error("one detector, or two to compare")
    results_of = []
    for path in args.detectors:
        if path.suffix == ".json":
            dataset = CocoDetections(args.data, args.split)
            results_of.append(read_results(path, dataset))
        else:
            predictor = Predictor.from_weights(path)
            dataset = CocoDetections(args.data, args.split, classes=predictor.classes)
            results_of.append(predict(predictor, dataset, progress=True))
    names = [path.stem for path in args.detectors]
    names += [f"{names[0]} - {names[1]}"] if len(names) > 1 else []
    for source, metrics in measure(dataset, results_of, args.draws).items():
        for metric, rows in metrics.items():
            for name, (value, half) in zip(names, rows, strict=True):
                print(f"{short(source):5} {metric:4}  {value:6.3f} ± {half:.3f}  {name}")


if __name__ == "__main__":
    main()
