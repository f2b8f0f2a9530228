"""How fast the exported `pyramid` is against PyTorch, and a `Predictor` against its network alone; batch 1.

    python benchmarks/export.py                 # CPU time on one thread: other work on the machine disturbs all alike
    python benchmarks/export.py --threads 2     # time by the clock: means something on a quiet machine only

All run in turns, image by image, in one process, on the photographs of data/photos as arrays. A ratio is the median
over the rounds. "eager" is PyTorch as `Predictor` uses it: channels-last, inference mode.
"""

import argparse
import json
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import onnxruntime
import torch

from odutils.files import DATA, replacing
from odutils.images import fit, input_shape, list_images, read_image
from odutils.inference import Predictor
from odutils.onnx_export import export
from odutils.presets import DEFAULT_WEIGHTS, load_detector

HERE = Path(__file__).resolve().parent
RATIOS = {  # what is compared with what, and the aim
    "network: eager / exported": ("eager network", "exported network", 2.0),
    "Predictor: eager / exported": ("eager Predictor", "exported Predictor", 2.0),
    "eager: Predictor / network": ("eager Predictor", "eager network", 1.1),
    "exported: Predictor / network": ("exported Predictor", "exported network", 1.1),
}


def make_runs(image, predictors: dict[str, Predictor]) -> dict:
    """The four things to be timed on an image."""
    size = next(iter(predictors.values())).size
    fitted, _ = fit(image, size, shape=input_shape(*image.shape[:2], size))
    images = torch.from_numpy(fitted[None]).permute(0, 3, 1, 2)  # (1, 3, height, width)
    runs = {f"{name} network": partial(predictor.detector, images) for name, predictor in predictors.items()}
    return runs | {f"{name} Predictor": partial(predictor, image) for name, predictor in predictors.items()}


@torch.inference_mode()
def measure(predictors: dict[str, Predictor], rounds: int, clock) -> list[dict[str, float]]:
    """Milliseconds an image, a dict for each round; a first round, which warms up, is left out."""
    runs_of_images = [make_runs(read_image(path), predictors) for path in list_images(DATA / "photos")]
    measured = []
    for _ in range(1 + rounds):
        spent = dict.fromkeys(runs_of_images[0], 0.0)
        for runs in runs_of_images:
            for name, run in runs.items():
                start = clock()
                run()
                spent[name] += (clock() - start) * 1e3 / len(runs_of_images)
        measured.append(spent)
    return measured[1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--machine", default="", help="named in the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(0)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    detector = load_detector(DEFAULT_WEIGHTS)
    with tempfile.TemporaryDirectory() as folder:
        exported = Predictor.from_weights(export(detector, Path(folder) / "model.onnx"))
        measured = measure({"eager": Predictor(detector, "cpu"), "exported": exported}, args.rounds, clock)
    times = {name: round(statistics.median(spent[name] for spent in measured), 2) for name in measured[0]}
    print("| ratio | median (smallest … largest round) | aim |\n|---|---|---|")
    ratios = {}
    for name, (above, below, aim) in RATIOS.items():
        values = [spent[above] / spent[below] for spent in measured]
        ratio, low, high = (round(f(values), 2) for f in (statistics.median, min, max))
        ratios[name] = {"ratio": ratio, "spread": [low, high], "aim": aim}
        print(f"| {name} | {ratio:.2f} ({low} … {high}) | {aim} |")
    print(", ".join(f"{name} {value} ms" for name, value in times.items()))
    about = {"threads": args.threads, "time": "CPU" if args.threads == 1 else "wall", "rounds": args.rounds}
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__, "machine": args.machine}
    with replacing(HERE / "results" / f"export_{args.threads}.json") as path:
        path.write_text(json.dumps({"ratios": ratios, "ms": times} | about | versions, indent=2) + "\n")


if __name__ == "__main__":
    main()
