"""COCO's 80 classes: names, category ids, and a colour each.

Label 0 is padding and labels 1…80 are the classes in the order of COCO's category ids; the ids run from 1 to 90 with
gaps (COCO dropped ten classes after numbering them), so `CATEGORY_IDS[label - 1]` translates.
"""

import colorsys
from collections.abc import Sequence

# fmt: off
CLASSES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)
# fmt: on

_DROPPED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)  # numbered by COCO, then never labelled
CATEGORY_IDS = tuple(number for number in range(1, 91) if number not in _DROPPED_IDS)

_FIRST_HUE = 0.98  # red for people, in turns of the colour circle; keeps VOC's 20 classes furthest apart
_GOLDEN_RATIO = 0.618033988749895  # steps of this many turns never repeat and keep any run of labels well spread
_LUMINANCES = (0.10, 0.26, 0.17)  # below 0.30 white text has a contrast above 3:1; above 0.08 they show on black


def colour_of(label: int) -> tuple[int, int, int]:
    """The (r, g, b) colour, 0…255, in which boxes of `label` are drawn; white text on it is readable.

    Works for any number of classes: label 1…C. The same label always has the same colour. Neighbouring labels differ
    in hue and in lightness, so that they can be told apart without colour vision too.
    Contrast after WCAG 2.1, success criterion 1.4.3: (1.05) / (luminance + 0.05) >= 3.
    """
    if label < 1:
        raise ValueError(f"label {label} has no colour: labels start at 1 (0 is padding, -1 is ignore)")
    hue = (_FIRST_HUE + (label - 1) * _GOLDEN_RATIO) % 1.0
    linear = [_to_linear(channel) for channel in colorsys.hsv_to_rgb(hue, 0.95, 1.0)]
    target, luminance = _LUMINANCES[label % len(_LUMINANCES)], _luminance(linear)
    if luminance >= target:  # darken
        linear = [channel * target / luminance for channel in linear]
    else:  # blues are darker than that at full strength: mix with white
        white = (target - luminance) / (1.0 - luminance)
        linear = [channel + (1.0 - channel) * white for channel in linear]
    red, green, blue = (round(255 * _from_linear(channel)) for channel in linear)
    return red, green, blue


def readable_on(colour: Sequence[int]) -> tuple[int, int, int]:
    """White on an (r, g, b) colour, or black where white has a contrast below 3:1 (WCAG 2.1, criterion 1.4.3)."""
    luminance = _luminance([_to_linear(channel / 255) for channel in colour])
    return (255, 255, 255) if 1.05 / (luminance + 0.05) >= 3 else (0, 0, 0)


def _to_linear(channel: float) -> float:
    """sRGB 0…1 to linear light (IEC 61966-2-1)."""
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4


def _from_linear(channel: float) -> float:
    return 12.92 * channel if channel <= 0.0031308 else 1.055 * channel ** (1 / 2.4) - 0.055


def _luminance(linear: list[float]) -> float:
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
