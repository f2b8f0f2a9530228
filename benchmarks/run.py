"""How fast `odutils` is against the article's own code, or a naive version where that is not at hand.

    python benchmarks/run.py                  # on the CPU
    python benchmarks/run.py --device cuda    # loss, training step, Predictor and training on a GPU

Both run in turns in one process. Without --device, on one thread, CPU time is compared: other work on the machine
disturbs both alike. With it the clock on the wall is, which waits for the device; `--device cpu --small` rehearses that
in seconds. The ratio of a benchmark is the median over its rounds.
"""

import argparse
import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import cv2
import naive
import timings
import torch
from article_code import ArticleCode
from measuring import wall_clock

from odutils.devices import best_device
from odutils.errors import InputError
from odutils.files import replacing
from odutils.sample.make import make_sample

HERE = Path(__file__).resolve().parent

ON_CPU = {  # aims: ours must be so many times as fast; below 1, ours may take so many times the time
    "loss": (timings.loss, 2.0),
    "loader": (timings.loader, 2.3),
    "inference": (timings.inference, 2.7),
    "training": (timings.training, 1 / 1.05),
    "operations": (timings.operations, 1 / 1.25),
    "decoding": (timings.decoding, 1 / 1.6),
    "video": (timings.video, None),
}
ON_DEVICE = {
    "loss": (timings.loss, None),
    "training": (timings.training, 1 / 1.10),
    "large_training": (timings.large_training, 1 / 1.10),
    "predictor_1": (partial(timings.prediction, images=1), None),
    "predictor_32": (partial(timings.prediction, images=32), None),
    "training_with_loader": (timings.training_with_loader, None),
}
AGAINST = {
    "training": "network alone",
    "large_training": "network alone",
    "operations": "network alone",
    "predictor_1": "network alone",
    "predictor_32": "network alone",
    "training_with_loader": "loading alone",
    "decoding": "decoding alone",
    "video": "decoding and encoding alone",
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "names", nargs="*", help=f"some of {', '.join(ON_CPU)}; with --device of {', '.join(ON_DEVICE)}; default: all"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], help="measure there by the clock on the wall")
    parser.add_argument(
        "--small", action="store_true", help="a rehearsal: small batches and one round, whose figures say nothing"
    )
    parser.add_argument("--article", type=Path, default=HERE.parents[1] / "shared" / "article" / "article.py")
    parser.add_argument("--data", help="a folder in COCO's layout for the loader; default: a drawn sample")
    parser.add_argument("--split", default="train")
    parser.add_argument("--machine", default="", help="named in the results; default on a GPU: its own name")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the results' JSON files")
    args = parser.parse_args(arguments)
    args.benchmarks = ON_DEVICE if args.device else ON_CPU
    args.names = args.names or list(args.benchmarks)
    if unknown := [name for name in args.names if name not in args.benchmarks]:
        parser.error(f"no benchmark {unknown[0]!r} here: choose of {', '.join(args.benchmarks)}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    suffix = f"_{args.device}" if args.device else ""
    try:
        args.device = best_device(args.device or "cpu")
    except InputError as error:
        sys.exit(str(error))
    args.clock = wall_clock(args.device) if suffix else time.process_time
    if args.device.type == "cuda":
        args.machine = args.machine or torch.cuda.get_device_name(args.device)
    if not suffix:
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
    torch.manual_seed(0)
    baseline = ArticleCode(args.article, args.device.type) if args.article.is_file() else naive
    with tempfile.TemporaryDirectory() as folder:
        args.scratch = folder
        images = (8 if args.small else 256 if suffix else 100, 1)
        args.data = args.data or make_sample(Path(folder) / "sample", images=images)
        print(f"{args.machine or 'CPU'}, torch {torch.__version__}\n")
        print("| benchmark | baseline | odutils | ratio (smallest … largest) | aim |\n|---|---|---|---|---|")
        for name in args.names:
            function, aim = args.benchmarks[name]
            result = function(args, baseline)
            low, high = result["spread"]
            unit = "operations" if name == "operations" else "ms"
            figures = " | ".join(f"{result[f'{one}_{unit}']:.6g} {unit}" for one in ("baseline", "ours"))
            aimed = "" if aim is None else f"{aim:.2f}"
            print(f"| {name} | {figures} | {result['ratio']:.2f} ({low} … {high}) | {aimed} |", flush=True)
            what = getattr(function, "func", function).__doc__
            against = AGAINST.get(name, "article" if baseline is not naive else "naive")
            result |= {"what": what, "baseline": against, "aim": aim, "machine": args.machine}
            result |= {"small": True} if args.small else {}
            args.out.mkdir(parents=True, exist_ok=True)
            with replacing(args.out / f"{name}{suffix}.json") as path:
                path.write_text(json.dumps(result | {"torch": torch.__version__}, indent=2) + "\n")


if __name__ == "__main__":
    main()
