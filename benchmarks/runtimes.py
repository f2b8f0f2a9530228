"""How fast the network of `pyramid` runs on a CPU, one way after the other; no loading, no suppression.

    python benchmarks/runtimes.py                # CPU time on one thread: other work on the machine disturbs all alike
    python benchmarks/runtimes.py --threads 2    # time by the clock: means something on a quiet machine only

The baseline is what `Predictor` does: PyTorch, eager, float32, channels-last. All ways run in turns in one process on
the same noise of 320 × 256 px. A ratio, how many times as fast as the baseline at that batch, is the median of the
rounds'.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from odutils.files import replacing
from odutils.onnx_detector import OnnxDetector
from odutils.onnx_export import export
from odutils.presets import DEFAULT_WEIGHTS, load_detector

HERE = Path(__file__).resolve().parent
BASELINE = "PyTorch: float32, channels-last"
HEIGHT, WIDTH = 320, 256  # a photograph of 4:3 or 5:4, letterboxed to multiples of 64


class Contiguous(nn.Module):
    """The detector in PyTorch's usual memory format, channels first."""

    def __init__(self, detector: nn.Module):
        super().__init__()
        self.detector = copy.deepcopy(detector).to(memory_format=torch.contiguous_format)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = (images.float() - self.detector.mean) / self.detector.std
        return self.detector.head(self.detector.backbone(pixels))


def in_bfloat16(detector: nn.Module) -> Callable:
    def run(images: Tensor):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return detector(images)

    return run


def with_openvino(path: Path, threads: int, precision: str) -> Callable | None:
    """precision: "f32" or "bf16".   None where the package is not installed: nothing in this project needs it."""
    try:
        import openvino
    except ImportError:
        return None
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
    model = openvino.Core().compile_model(str(path), "CPU", options)
    return lambda images: model([images.numpy()])


def compiled(detector: nn.Module) -> Callable:
    return torch.compile(copy.deepcopy(detector), dynamic=False)


def make_ways(folder: Path, threads: int, compile_too: bool) -> dict[str, Callable]:
    detector = load_detector(DEFAULT_WEIGHTS)
    exported = export(detector, folder / "model.onnx")
    ways = {
        BASELINE: detector,
        "PyTorch: float32, channels first": Contiguous(detector).eval(),
        "PyTorch: bfloat16, channels-last": in_bfloat16(detector),
        "PyTorch: torch.compile, float32": compiled(detector) if compile_too else None,
        "ONNX Runtime, float32 (`python -m odutils export`)": OnnxDetector(exported),
        "OpenVINO, of the same file, float32": with_openvino(exported, threads, "f32"),
        "OpenVINO, of the same file, bfloat16": with_openvino(exported, threads, "bf16"),
    }
    return {name: way for name, way in ways.items() if way is not None}


@torch.inference_mode()
def furthest(ways: dict[str, Callable], detector: Callable, images: Tensor) -> dict[str, float]:
    """The largest difference of any class probability from the baseline's: a fast way must be right, too."""
    expected = detector(images)[0].sigmoid()
    answers = {name: torch.as_tensor(way(images)[0]) for name, way in ways.items()}
    return {name: float((answer.float().sigmoid() - expected).abs().max()) for name, answer in answers.items()}


@torch.inference_mode()
def measure(ways: dict[str, Callable], batch: int, rounds: int, clock) -> dict[str, list[float]]:
    """Milliseconds an image of every round; two rounds before that warm up."""
    images = torch.randint(0, 256, (batch, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(2 + rounds):
        for name, way in ways.items():
            start = clock()
            way(images)
            times[name].append((clock() - start) * 1e3 / batch)
    return {name: values[2:] for name, values in times.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out: it wants a C++ compiler")
    parser.add_argument("--machine", default="", help="named in the results")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    found: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        ways = make_ways(Path(folder), args.threads, not args.no_compile)
        noise = torch.randint(0, 256, (1, 3, HEIGHT, WIDTH), dtype=torch.uint8, generator=torch.manual_seed(0))
        differences = furthest(ways, ways[BASELINE], noise)
        for batch in args.batches:
            times = measure(ways, batch, args.rounds, clock)
            for name, values in times.items():
                ratio = statistics.median(b / v for b, v in zip(times[BASELINE], values, strict=True))
                entry = {"ms": round(statistics.median(values), 2), "ratio": round(ratio, 2)}
                found.setdefault(name, {"difference": round(differences[name], 5)})[f"batch {batch}"] = entry
    print("| way | " + " | ".join(f"batch {b}: ms an image (ratio)" for b in args.batches) + " | difference |")
    print("|---|" + "---|" * len(args.batches) + "---|")
    for name, entry in found.items():
        cells = (f"{entry[f'batch {b}']['ms']:.1f} ({entry[f'batch {b}']['ratio']:.2f})" for b in args.batches)
        print(f"| {name} | " + " | ".join(cells) + f" | {entry['difference']:.4f} |")
    about = {"threads": args.threads, "time": "CPU" if args.threads == 1 else "wall", "rounds": args.rounds}
    about |= {"input": [HEIGHT, WIDTH], "torch": torch.__version__, "machine": args.machine}
    with replacing(HERE / "results" / f"runtimes_{args.threads}.json") as path:
        path.write_text(json.dumps({"ways": found} | about, indent=1) + "\n")


if __name__ == "__main__":
    main()
