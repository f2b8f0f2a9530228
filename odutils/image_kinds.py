"""Which kinds of image files can be read here, and which package reads another kind."""

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError, features


class Plugin(NamedTuple):
    """A package that teaches Pillow another kind of image."""

    kind: str
    start: bytes  # regular expression: how such a file begins
    suffixes: tuple[str, ...]
    module: str
    package: str


PLUGINS = (
    Plugin(
        "HEIC", rb".{4}ftyp(hei[cmsx]|hev[cmx]|mif1|msf1)", (".heic", ".heif", ".hif"), "pillow_heif", "pillow-heif"
    ),
    Plugin("AVIF", rb".{4}ftypavi[fs]", (".avif",), "pillow_avif", "pillow-avif-plugin"),
    Plugin("JPEG XL", rb"\xff\x0a|\0\0\0\x0cJXL ", (".jxl",), "pillow_jxl", "pillow-jxl-plugin"),
)
ALWAYS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
SOMETIMES = {"avif": (".avif",), "jpg_2000": (".jp2", ".j2k")}  # depends on how Pillow was built; AVIF came with 11.3
NEVER = (".svg", ".psd", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2")  # drawings and camera raw


@cache
def readable_suffixes() -> tuple[str, ...]:
    """Of the image files that can be read here."""
    suffixes = list(ALWAYS)
    for feature, more in SOMETIMES.items():
        if (feature in features.modules or feature in features.codecs) and features.check(feature):
            suffixes += more
    for plugin in PLUGINS:
        if find_spec(plugin.module):
            suffixes += plugin.suffixes
    return tuple(dict.fromkeys(suffixes))


def how_to_read(suffix: str) -> str | None:
    """What to do about an image with this suffix, which cannot be read here; None if it is no image."""
    for plugin in PLUGINS:
        if suffix in plugin.suffixes:
            return f"pip install {plugin.package}"
    return "save as JPEG or PNG" if suffix in NEVER or any(suffix in more for more in SOMETIMES.values()) else None


def open_image(file: BinaryIO) -> Image.Image:
    """Pillow's Image.open, which loads a plugin where it needs one.

    Raises UnidentifiedImageError with the kind of image, if it is known, and the package that reads it.
    """
    try:
        return Image.open(file)
    except UnidentifiedImageError:
        file.seek(0)
        start = file.read(16)
        file.seek(0)
    plugin = next((one for one in PLUGINS if re.match(one.start, start, re.DOTALL)), None)
    if plugin is None:
        raise UnidentifiedImageError("it is no image, or of a kind that is unknown here")
    try:
        module = import_module(plugin.module)
    except ImportError:
        raise UnidentifiedImageError(f"{plugin.kind}: pip install {plugin.package}, or save it as JPEG") from None
    if plugin.module == "pillow_heif":  # the others register themselves
        module.register_heif_opener()
    return Image.open(file)
