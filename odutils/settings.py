"""What a detector has to be told besides its tensors, as a weights file of either kind carries it in its metadata."""

import reprlib
from typing import Any, NamedTuple

from odutils.errors import InputError

FINEST_STRIDES = (8, 4)  # that a feature pyramid can begin with


class Settings(NamedTuple):
    """How to build a detector and how to use it."""

    preset: str  # how the parts are put together, see presets.py
    classes: tuple[str, ...]  # their names, in label order: classes[label - 1]
    size: int  # px of the input's longer side
    squash: bool  # images are stretched to size × size instead of letterboxed
    threshold: float = 0.35  # score from which a detection is shown to people
    anchors: str = ""  # "as published" for the article's own weights, see article_weights.py
    finest_stride: int = 8  # of the feature pyramid, or 4, see fine.py

    @classmethod
    def from_metadata(cls, metadata: dict[str, Any], name: str) -> "Settings":
        """Settings from a file's metadata, checked; other entries are passed over.   name: of the file, for errors.

        Raises InputError if an entry is missing or is not what it must be.
        """
        if missing := [field for field in ("preset", "classes", "size", "squash") if field not in metadata]:
            raise InputError(f"{name}: its metadata lack {', '.join(missing)}: not a detector of this project")
        settings = cls(**{field: metadata[field] for field in cls._fields if field in metadata})
        preset, classes, size, squash, threshold, anchors, finest_stride = settings
        named = isinstance(classes, list | tuple) and classes and all(isinstance(text, str) for text in classes)
        faults = {
            "preset": not isinstance(preset, str),
            "classes": not named,
            "size": type(size) is not int or size < 1,
            "squash": not isinstance(squash, bool),
            "threshold": type(threshold) not in (int, float) or not 0 <= threshold <= 1,
            "anchors": not isinstance(anchors, str),
            "finest_stride": type(finest_stride) is not int or finest_stride not in FINEST_STRIDES,
        }
        if wrong := [field for field, is_wrong in faults.items() if is_wrong]:
            value = reprlib.repr(getattr(settings, wrong[0]))
            raise InputError(f"{name}: its metadata describe no detector: {wrong[0]} is {value}")
        return settings._replace(classes=tuple(classes))
