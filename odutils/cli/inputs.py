"""What the commands of the command line share: which files, splits, weights and devices are meant, and complaints."""

import os
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from odutils.errors import InputError, plain_text


def complain(problem: Exception | str) -> None:
    """One line on stderr. Of an error from a loader's process, which arrives as a whole traceback, its last line."""
    text = str(problem)
    if "Original Traceback" in text:
        text = text.strip().splitlines()[-1].split("Error: ", 1)[-1]
    print("odutils:", plain_text(text) if text.strip() else type(problem).__name__, file=sys.stderr)


def find_images(paths: Sequence[str], recursive: bool = False) -> tuple[list[Path], int]:
    """The images that are named or lie in the folders named, each once, and the exit code so far.

    recursive: in their sub-folders, too.   What is not there is told and gives 1, the rest is done; InputError if there
    is no rest. What a folder holds besides is told.
    """
    from odutils.images import look_into

    found, problems = {}, []
    for path in map(Path, paths):
        try:
            if not path.exists():
                raise InputError(f"{path}: no such file or folder")
            images, passed_over = look_into(path, recursive) if path.is_dir() else ([path], "")
        except InputError as error:
            problems.append(error)
            continue
        for image in images:
            found.setdefault(os.path.realpath(image), image)  # which, unlike resolve, survives links in a circle
        if passed_over:
            complain(f"{path}: passed over: {passed_over}")
    if not found:
        raise InputError("; ".join(map(str, problems)))
    for problem in problems:
        complain(problem)
    return list(found.values()), 1 if problems else 0


def name_targets(images: Sequence[Path], out: Path) -> list[Path]:
    """A file in `out` for each image: of its name, numbered where that is taken; .jpg for kinds not written."""
    from odutils.drawing import SUFFIXES

    sources = {os.path.realpath(path) for path in images}
    targets, taken = [], set()
    for path in images:
        suffix = path.suffix if path.suffix.lower() in SUFFIXES else ".jpg"
        name, number = path.stem + suffix, 2
        while name.lower() in taken:  # some file systems do not tell upper from lower case
            name, number = f"{path.stem}_{number}{suffix}", number + 1
        taken.add(name.lower())
        targets.append(out / name)
        if os.path.realpath(targets[-1]) in sources:
            raise InputError(f"{targets[-1]}: would be drawn over: choose another folder with --out")
    return targets


def names_below(paths: Sequence[str], images: Sequence[Path]) -> tuple[list[str], str]:
    """How a file calls each of the images: relative to the folder given, or to the one that holds all those given.

    With the name of that folder, "" if it has none.
    """
    folders = [path if path.is_dir() else path.parent for path in map(Path, paths) if path.exists()]
    try:
        root = os.path.commonpath([os.path.abspath(folder) for folder in folders])
    except ValueError:  # on Windows there is no way from one drive to another
        return [path.as_posix() for path in images], ""
    return [Path(os.path.relpath(path, root)).as_posix() for path in images], Path(root).name


def find_split(data: str, wanted: str | None, usual: Sequence[str]) -> str:
    """The split that the user wants, or the first of the usual names that is there. Raises InputError if it is not."""
    there = splits_of(data)
    split = wanted or next((name for name in usual if name in there), None)
    if split not in there:
        missing = f"no split {split!r}" if split else f"no split called {' or '.join(usual)}"
        raise InputError(f"{data}: {missing}; there are {', '.join(there)}")
    return split


def splits_of(data: str) -> list[str]:
    """The splits of a data set, by its annotation files. Raises InputError if there are none."""
    if not Path(data).is_dir():
        raise InputError(f"{data}: no such folder")
    there = sorted(file.stem.removeprefix("instances_") for file in Path(data).glob("annotations/instances_*.json"))
    if not there:
        raise InputError(f"{data}: no annotations/instances_SPLIT.json in it: not a data set in COCO's layout")
    return there


def load_predictor(args: Namespace):
    """The predictor that --weights, --device, --size and --tiles ask for. Raises InputError if there is none."""
    from odutils.inference import Predictor

    predictor = Predictor.from_weights(args.weights, args.device, args.tiles)
    if args.size and predictor.detector.settings.squash:
        raise InputError(f"--size {args.size}: a detector of squashed images has one size, {predictor.size} px")
    predictor.size = args.size or predictor.size
    return predictor


@contextmanager
def bars_on_terminals_only() -> Iterator[None]:
    """fastprogress draws its bars into pipes and files, too; not so inside this block. Its lines of figures stay."""
    from fastprogress import fastprogress

    before = fastprogress.NO_BAR
    if not sys.stdout.isatty():
        fastprogress.NO_BAR = True
        fastprogress.print = lambda *_, **__: None  # a new bar tries out its block whatever NO_BAR says
    try:
        yield
    finally:
        fastprogress.NO_BAR = before
        vars(fastprogress).pop("print", None)
