"""The race: the article's way, the peers' way and ours; the same backbone, images and minutes of CPU time, one thread.

    python benchmarks/race.py --data ../shared/photos --minutes 8     # every entrant that has no result yet
    python benchmarks/race.py --data FOLDER pyramid fcos --seed 1     # some of them, another seed

FOLDER is in COCO's layout, with the splits train and dev. Every entrant runs in a process of its own; one that was
interrupted goes on from its checkpoint, one that has a result is skipped. `race_table.py` makes the table and the plot.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import torch
from entrants import ENTRANTS, Course, Run
from entrants.course import SIZE, Budget, use_average
from torch.utils.flop_counter import FlopCounterMode

from odutils.datasets import CocoDetections
from odutils.evaluation import predict, score_by_source
from odutils.files import RUNS, replacing
from odutils.resume import Resume

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "race"
EVERY = 100  # steps between checkpoints


def multiplications(run: Run) -> int:
    """Multiply-adds of the network for one image, one counter for all: half of torch's floating-point operations."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        run.learn.detector.eval()(run.image)
    return counter.get_total_flops() // 2


def race(name: str, course: Course, folder: Path, valid_split: str) -> dict:
    """Train one entrant, going on from its checkpoint if there is one, and score it."""
    torch.manual_seed(course.seed)
    what, build = ENTRANTS[name]
    run = build(course)
    settings = {"entrant": name, "seed": course.seed, "minutes": course.minutes, "data": str(course.data)}
    checkpoint = folder / f"{name}_{course.seed}.pt"
    run.learn.cbs.append(Resume(checkpoint, run.sampler, run.batch_size, settings, course.seed, EVERY))
    started = time.perf_counter()
    run.learn.fit(1, valid=False)
    wall = time.perf_counter() - started
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    use_average(run.learn)
    run.learn.detector.eval()
    dataset = CocoDetections(course.data, valid_split, SIZE)
    started = time.process_time()
    results = predict(run.predictor, dataset)
    predicting = time.process_time() - started
    budget = next(callback for callback in run.learn.cbs if isinstance(callback, Budget))
    checkpoint.unlink(missing_ok=True)
    return {
        "entrant": name,
        "what": what,
        "seed": course.seed,
        "cpu_minutes": round(budget.spent / 60, 2),
        "wall_minutes_since_last_start": round(wall / 60, 2),
        "steps": run.learn.steps,
        "batch_size": run.batch_size,
        "images_seen": run.learn.steps * run.batch_size,
        "training_memory_mb": round(memory),
        "parameters": sum(p.numel() for p in run.learn.detector.parameters()),
        "multiplications": multiplications(run),
        "predict_cpu_ms": round(predicting * 1e3 / len(dataset), 1),
        "scores": score_by_source(dataset, results),
        "images": {course.split: run.sampler.images, valid_split: len(dataset)},
        "input_px": SIZE,
        "torch": torch.__version__,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="ENTRANT", help=f"(default: all) {', '.join(ENTRANTS)}")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "photos")
    parser.add_argument("--split", default="train", help="to train on")
    parser.add_argument("--valid-split", default="dev", help="to be scored on")
    parser.add_argument("--minutes", type=float, default=8.0, help="of CPU time, loading included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--article", type=Path, default=HERE.parents[1] / "shared" / "article" / "article.py")
    parser.add_argument("--machine", default="", help="named in the results")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--alone", action="store_true", help="run the one entrant in this process")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(ENTRANTS))
    if unknown:
        parser.error(f"no such entrant: {', '.join(unknown)}")
    for name in args.names or ENTRANTS:
        result = args.results / f"{name}_{args.seed}.json"
        if result.exists():
            print(f"{name}: has a result", flush=True)
        elif name == "article" and not args.article.is_file():
            print(f"{name}: needs the article's code, --article FILE; left out", flush=True)
        elif args.alone:
            torch.set_num_threads(1)
            cv2.setNumThreads(0)
            course = Course(args.data.resolve(), args.split, args.minutes, args.seed, args.article)
            made = race(name, course, RUNS / "race", args.valid_split) | {"machine": args.machine}
            result.parent.mkdir(parents=True, exist_ok=True)
            with replacing(result) as temporary:
                temporary.write_text(json.dumps(made, indent=1) + "\n")
            scores = made["scores"]["by_source"]
            print(f"{name}: AP50 " + ", ".join(f"{s} {v['AP50']:.3f}" for s, v in scores.items()), flush=True)
        else:  # a process of its own, so that its peak of memory is its own
            options = [o for o in sys.argv[1:] if o not in args.names]
            subprocess.run([sys.executable, __file__, name, *options, "--alone"], check=True)


if __name__ == "__main__":
    main()
