"""The race: the article's way, the peers' way and ours; the same backbone and images, the same minutes or epochs.

    python benchmarks/race.py --data FOLDER --epochs 8                  # every entrant that has no result yet
    python benchmarks/race.py --data FOLDER --epochs 8 --device cuda    # the same on a GPU
    python benchmarks/race.py --data FOLDER --epochs 8 --bfloat16 fcos  # one of them, quicker on a CPU that can do that
    python benchmarks/race.py --data FOLDER --minutes 6 pyramid --seed 1    # by CPU time, another seed

FOLDER is in COCO's layout, with the splits train and dev. Every entrant runs in a process of its own, on one thread;
one that was interrupted goes on from its checkpoint, one that has a result is skipped. The detections stay in
runs/race, for paired intervals. `race_table.py` makes the tables and the plot. An epoch is 9,880 images for everyone,
however many FOLDER holds.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import cv2
import torch
from entrants import ENTRANTS, Course, Run
from entrants.course import EPOCH, SIZE, Budget, use_average
from torch.utils.flop_counter import FlopCounterMode

from odutils.datasets import CocoDetections
from odutils.evaluation import predict, score_by_source
from odutils.files import RUNS, replacing
from odutils.resume import Resume

HERE = Path(__file__).resolve().parent
BY_MINUTES, BY_EPOCHS = HERE / "results" / "race", HERE / "results" / "race_by_epochs"
EVERY = 100  # steps between checkpoints
# glibc asks the system for large blocks anew each time, and pages them in: a third of a training step on a CPU. Now it
# keeps them. Ignored by other C libraries.
MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**27)}


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
    length = {"minutes": course.minutes} if course.epochs is None else {"epochs": course.epochs}
    precision = {"bfloat16": course.bfloat16}
    settings = {"entrant": name, "seed": course.seed, "data": str(course.data)} | length | precision
    checkpoint = folder / f"{name}_{course.seed}_{next(iter(length))}.pt"
    run.learn.cbs.append(Resume(checkpoint, run.sampler, run.batch_size, settings, course.seed, EVERY))
    run.learn.fit(1, valid=False)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    use_average(run.learn)
    run.learn.detector.eval()
    dataset = CocoDetections(course.data, valid_split, SIZE)
    started = time.process_time()
    results = predict(run.predictor, dataset)
    predicting = time.process_time() - started
    budget = next(callback for callback in run.learn.cbs if isinstance(callback, Budget))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{checkpoint.stem}_detections.json").write_text(json.dumps(results))
    checkpoint.unlink(missing_ok=True)
    return {
        "entrant": name,
        "what": what,
        "seed": course.seed,
        **length,
        "device": torch.cuda.get_device_name() if course.device == "cuda" else course.device,
        "precision": run.precision,
        "cpu_minutes": round(budget.cpu / 60, 2),
        "wall_minutes": round(budget.wall / 60, 2),
        "steps": run.learn.steps,
        "batch_size": run.batch_size,
        "images_seen": run.learn.steps * run.batch_size,
        "training_memory_mb": round(memory),
        **({"gpu_memory_mb": torch.cuda.max_memory_allocated() >> 20} if course.device == "cuda" else {}),
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
    length = parser.add_mutually_exclusive_group(required=True)
    length.add_argument("--minutes", type=float, help="of CPU time, loading included")
    length.add_argument("--epochs", type=float, help=f"of {EPOCH:,} images each")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--bfloat16", action="store_true", help="train the network in bfloat16 (ours do so on a GPU)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--article", type=Path, default=HERE.parents[1] / "shared" / "article" / "article.py")
    parser.add_argument("--machine", default="", help="named in the results")
    parser.add_argument("--results", type=Path, help="default: a folder of results/, one for minutes, one for epochs")
    parser.add_argument("--alone", action="store_true", help="run the one entrant in this process")
    args = parser.parse_args()
    unknown = sorted(set(args.names) - set(ENTRANTS))
    if unknown:
        parser.error(f"no such entrant: {', '.join(unknown)}")
    if args.minutes and (args.device != "cpu" or args.workers):
        parser.error("--minutes counts the CPU time of one process: neither --device cuda nor --workers goes with it")
    results = args.results or (BY_MINUTES if args.epochs is None else BY_EPOCHS)
    for name in args.names or ENTRANTS:
        result = results / f"{name}_{args.seed}.json"
        if result.exists():
            print(f"{name}: has a result", flush=True)
        elif name == "article" and not args.article.is_file():
            print(f"{name}: needs the article's code, --article FILE; left out", flush=True)
        elif args.alone:
            run_alone(name, args, result)
        else:  # a process of its own, so that its peak of memory is its own
            options = [o for o in sys.argv[1:] if o not in args.names]
            subprocess.run([sys.executable, __file__, name, *options, "--alone"], check=True, env=os.environ | MEMORY)


def run_alone(name: str, args: argparse.Namespace, result: Path) -> None:
    """Train and score one entrant in this process, and write its result."""
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    length = dict(minutes=args.minutes, epochs=args.epochs)
    how = dict(device=args.device, bfloat16=args.bfloat16, workers=args.workers)
    course = Course(args.data.resolve(), args.split, args.seed, args.article, **length, **how)
    made = race(name, course, RUNS / "race", args.valid_split) | {"machine": args.machine}
    result.parent.mkdir(parents=True, exist_ok=True)
    with replacing(result) as temporary:
        temporary.write_text(json.dumps(made, indent=1) + "\n")
    scores = made["scores"]["by_source"]
    print(f"{name}: AP50 " + ", ".join(f"{s} {v['AP50']:.3f}" for s, v in scores.items()), flush=True)


if __name__ == "__main__":
    main()
