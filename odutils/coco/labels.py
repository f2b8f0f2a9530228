"""What the readers of other label formats (yolo, voc, label_studio) share: images by name, files, boxes.

Boxes here are xyxy in pixels of the image as `read_image` gives it, upright: labelling tools show it so, too.
"""

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

from odutils.ahead import map_ahead
from odutils.errors import InputError, UnreadableError, plain_text, plural
from odutils.images import look_into, upright_size
from odutils.progress import MANY, bar

T = TypeVar("T")


class LabelledObject(NamedTuple):
    """An object that somebody labelled in an image."""

    name: str  # of its class
    box: tuple[float, float, float, float]  # xyxy in pixels, inside the image
    difficult: bool = False


class Labels(NamedTuple):
    """What the files of a format say."""

    classes: list[str]  # in the order of the category ids
    objects: dict[str, list[LabelledObject]]  # by image, as ImageFolder names it; images that are absent are left out
    notes: list[str]  # what was passed over or changed, a sentence each


class ImageFolder:
    """The images that labels belong to, sub-folders included: names relative to the folder, with / between its parts.

    Every image is decoded once. Raises InputError if there is none, UnreadableError for the first that is broken.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        found = look_into(folder, recursive=True)
        self.passed_over = found.passed_over
        self.paths = {path.relative_to(self.folder).as_posix(): path for path in found.images}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # decoders warn of harmless oddities, such as a corrupt EXIF entry
            sizes = bar(map_ahead(size_of, found.images), len(found.images), "images", len(found.images) >= MANY)
            self.sizes = dict(zip(self.paths, sizes, strict=True))  # name -> (width, height) in pixels, upright
        self.by_stem: dict[str, list[str]] = {}
        for name in self.paths:
            self.by_stem.setdefault(str(PurePosixPath(name).with_suffix("")), []).append(name)

    def with_stem(self, stem: str, where: str | Path) -> str:
        """The image that has this name but for the suffix. Raises InputError if there is none, or several."""
        found = self.by_stem.get(stem, [])
        if len(found) != 1:
            problem = f"there are {' and '.join(found)}" if found else f"no image {stem}.* in {self.folder}"
            raise InputError(f"{where}: {problem}")
        return found[0]


def size_of(path: Path) -> tuple[int, int]:
    try:
        return upright_size(path)
    except Exception as error:  # rubbish makes decoders raise almost anything
        raise UnreadableError(f"{path}: cannot be read as an image ({plain_text(error)})") from None


def read_all(files: Sequence[T], read: Callable[[T], None]) -> None:
    """Call `read` for each file. Raises one InputError at the end: the first of those that it raises, and how many."""
    faults = []
    for file in files:
        try:
            read(file)
        except InputError as error:
            faults.append(str(error))
    if faults:
        more = f" (and {plural(len(faults) - 1, 'more fault')})" if len(faults) > 1 else ""
        raise InputError(faults[0] + more)


def read_text(path: Path) -> str:
    """A text file in UTF-8, with or without byte-order mark. Raises InputError if it is none."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None


def label_files(source: Path, suffix: str) -> list[Path]:
    """The files with a suffix in a folder and its sub-folders. Raises InputError if there are none."""
    if not source.is_dir():
        raise InputError(f"{source}: no such folder")
    files = sorted(file for file in source.rglob(f"*{suffix}") if not file.name.startswith("._"))  # macOS writes those
    if not files:
        raise InputError(f"{source}: no {suffix} files in it")
    return files


def inside(box: Sequence[float], size: tuple[int, int], where: str) -> tuple[float, float, float, float]:
    """A box xyxy in pixels, cut off at the edges of an image of (width, height) pixels.

    Raises InputError, which begins with `where`, if nothing is left of it.
    """
    left, top, right, bottom = box
    if right <= left or bottom <= top:
        raise InputError(f"{where}: the box has no area")
    cut = max(0.0, left), max(0.0, top), min(float(size[0]), right), min(float(size[1]), bottom)
    if cut[2] <= cut[0] or cut[3] <= cut[1]:
        shown = ", ".join(f"{side:.4g}" for side in box)
        raise InputError(f"{where}: the box ({shown}) lies outside the image of {size[0]} × {size[1]} pixels")
    return cut
