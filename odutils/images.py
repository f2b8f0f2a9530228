"""Images in: any file as an upright RGB array, fitted to the network's input.

An image is a `uint8` array (H, W, 3), RGB, upright. The network sees it through `fit`, which says how it was placed,
so that boxes find their way back (`to_input`, `to_image`).
"""

import io
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps

from odutils.errors import InputError, UnreadableError, plain_text, plural
from odutils.image_kinds import how_to_read, open_image, readable_suffixes

ORIENTATION, TURNED = 0x0112, (5, 6, 7, 8)  # the EXIF tag, and its values that exchange width and height
GREY = 114  # of the border beside a letterboxed image: near the mean of photographs, so it looks like nothing
MULTIPLE = 64  # px: with such sides every level of the pyramid, whose coarsest stride it is, has whole cells


def to_rgb(image: Image.Image) -> np.ndarray:
    """Any PIL image (grey, 16-bit, palette, CMYK, transparent, EXIF-rotated) as upright (H, W, 3) uint8 RGB array."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):  # 16 bits a pixel (or more): PIL would cut off at 255 instead of scaling
        values = np.asarray(image, dtype=np.float32)
        values = values / 257 if values.max(initial=0) > 255 else values
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def is_plain_jpeg(image: Image.Image, content: bytes) -> bool:
    """Whether an opened file is an upright grey or colour JPEG with its end marker: nothing OpenCV could get wrong."""
    whole = image.format == "JPEG" and content.endswith(b"\xff\xd9")  # OpenCV fills up what is cut off, without a word
    return whole and image.mode in ("RGB", "L") and image.getexif().get(ORIENTATION, 1) == 1


def decode_quickly(content: bytes) -> np.ndarray | None:
    """A plain JPEG by OpenCV: PIL's pixels in half of PIL's time. None if it does not succeed."""
    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as an upright (H, W, 3) uint8 RGB array.

    Raises InputError if the file is missing, UnreadableError if it is no image, is cut short, or cannot be opened.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:  # no permission, a folder, links in a circle
        raise UnreadableError(f"{path}: cannot be read as an image ({error.strerror})") from None
    if not content:
        raise UnreadableError(f"{path}: cannot be read as an image (the file is empty)")
    try:
        with open_image(io.BytesIO(content)) as image:
            quick = decode_quickly(content) if is_plain_jpeg(image, content) else None
            return to_rgb(image) if quick is None else quick
    except Exception as error:  # rubbish makes decoders raise almost anything
        raise UnreadableError(f"{path}: cannot be read as an image ({plain_text(error)})") from None


def upright_size(path: str | Path, decode: bool = True) -> tuple[int, int]:
    """(width, height) of an image as `read_image` gives it.

    decode: all of it, so that a broken file raises; else the header alone is read, which is quick.
    """
    with open(path, "rb") as file, open_image(file) as image:
        size = image.size[::-1] if image.getexif().get(ORIENTATION) in TURNED else image.size
        if decode:
            image.draft("L", (1, 1))  # a JPEG at an eighth of its size: the whole file is read, in less time
            image.load()
    return size


class FolderContent(NamedTuple):
    """What a folder holds for us."""

    images: list[Path]  # that can be read here, by name
    passed_over: str  # what else might be meant, and what to do about it; "" if nothing


def look_into(folder: str | Path, recursive: bool = False) -> FolderContent:
    """The images in a folder, and in its sub-folders if `recursive`; the files that macOS calls `._*` are none.

    Raises InputError if the folder is missing, cannot be read or holds no image.
    """

    def refuse(error: OSError):
        raise InputError(f"{error.filename}: {error.strerror}") from None

    if not Path(folder).is_dir():
        raise InputError(f"{folder}: no such folder")
    files, notes = [], []
    for place, folders, names in os.walk(folder, onerror=refuse):  # goes into no links, so that it comes to an end
        files += [Path(place, name) for name in names if not name.startswith("._")]
        if not recursive:
            if folders:
                notes.append(f"{plural(len(folders), 'sub-folder')} (name them, or ask for `recursive`)")
            break
    images = sorted(path for path in files if path.suffix.lower() in readable_suffixes())
    others = Counter(path.suffix.lower() for path in files if path.suffix.lower() not in readable_suffixes())
    for suffix, count in sorted(others.items()):
        if advice := how_to_read(suffix):
            notes.append(f"{count} {suffix} ({advice})")
    passed_over = ", ".join(notes)
    if not images:
        hint = f"; passed over: {passed_over}" if passed_over else ""
        raise InputError(f"{folder}: no images in this folder ({', '.join(readable_suffixes())}){hint}")
    return FolderContent(images, passed_over)


def list_images(folder: str | Path, recursive: bool = False) -> list[Path]:
    """The images of a folder by name, and of its sub-folders if `recursive`. Raises InputError if there are none."""
    return look_into(folder, recursive).images


class Placement(NamedTuple):
    """Where an image lies on the network's input; lengths in pixels of the input."""

    scale_x: float  # input pixels an image pixel
    scale_y: float
    width: int  # of the whole input
    height: int

    def to_input(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (K, 4) xyxy in pixels of the image -> 0…1 of the input."""
        return boxes * np.float32([self.scale_x / self.width, self.scale_y / self.height] * 2)

    def to_image(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes (K, 4) xyxy in 0…1 of the input -> pixels of the image."""
        return boxes / np.float32([self.scale_x / self.width, self.scale_y / self.height] * 2)


def input_shape(height: int, width: int, size: int, squash: bool = False) -> tuple[int, int]:
    """The smallest (height, width) of a network input that holds the image with its longer side at `size` pixels.

    Both are multiples of MULTIPLE.
    """
    if squash:
        return size, size
    scale = size / max(height, width)
    sides = (max(1, round(side * scale)) for side in (height, width))
    return tuple(-(-side // MULTIPLE) * MULTIPLE for side in sides)


def place(height: int, width: int, size: int, squash: bool = False, shape: tuple[int, int] | None = None) -> Placement:
    """Where `fit` puts an image of height × width px."""
    shape = shape or (size, size)
    if squash:
        return Placement(shape[1] / width, shape[0] / height, shape[1], shape[0])
    scale = size / max(height, width)
    return Placement(max(1, round(width * scale)) / width, max(1, round(height * scale)) / height, shape[1], shape[0])


def resize(image: np.ndarray, height: int, width: int, quick: bool = False) -> np.ndarray:
    """Bilinear, with a filter that widens as the image shrinks, so that every pixel counts: no aliasing.

    torch's, because it takes a fifth of the time of OpenCV's INTER_AREA, and INTER_LINEAR passes over pixels.
    quick: where no side shrinks, INTER_LINEAR all the same: half of torch's time, and within one level of it.
    """
    if quick and height >= image.shape[0] and width >= image.shape[1]:
        return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    from torch import from_numpy
    from torch.nn.functional import interpolate

    pixels = from_numpy(np.require(image, requirements="CW"))[None].permute(0, 3, 1, 2)  # (1, 3, H, W)
    return interpolate(pixels, (height, width), mode="bilinear", antialias=True).permute(0, 2, 3, 1)[0].numpy()


def fit(
    image: np.ndarray, size: int, squash: bool = False, shape: tuple[int, int] | None = None, quick: bool = False
) -> tuple[np.ndarray, Placement]:
    """Resize an image once for the network: its longer side becomes `size`, the rest of the input is grey.

    squash: stretch it to size × size instead, as the article does.
    shape: (height, width) of the input, default size × size.   quick: as in `resize`.
    Returns the input (height, width, 3) uint8 and the placement of the image in its upper left corner.
    """
    height, width = image.shape[:2]
    placement = place(height, width, size, squash, shape)
    new_width, new_height = round(width * placement.scale_x), round(height * placement.scale_y)
    if (new_height, new_width) != (height, width):
        image = resize(image, new_height, new_width, quick)
    if image.shape[:2] != (placement.height, placement.width):
        canvas = np.full((placement.height, placement.width, 3), GREY, np.uint8)
        canvas[:new_height, :new_width] = image
        image = canvas
    return image, placement
