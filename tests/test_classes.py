"""Protects the meaning of a label: a shift by one here would rename every detection, silently."""

import itertools

import cv2
import numpy as np
import pytest
from torchvision.models._meta import _COCO_CATEGORIES

from odutils.classes import CATEGORY_IDS, CLASSES, colour_of

VOC_CLASSES = (
    "airplane bicycle bird boat bottle bus car cat chair cow dining_table dog horse motorcycle person potted_plant "
    "sheep couch train tv"
).split()


def contrast_with_white(colour):
    """WCAG 2.1, success criterion 1.4.3, and its definition of relative luminance."""
    channels = np.array(colour) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)


def distance(first, second):
    """CIE76 colour difference; about 2 is just noticeable."""
    lab = cv2.cvtColor(np.float32([[first, second]]) / 255, cv2.COLOR_RGB2LAB)[0]
    return np.linalg.norm(lab[0] - lab[1])


def test_names_and_ids_are_those_of_coco():
    assert [_COCO_CATEGORIES[number] for number in CATEGORY_IDS] == list(CLASSES)  # torchvision counts from 0
    left_out = {_COCO_CATEGORIES[number] for number in range(1, 91) if number not in CATEGORY_IDS}
    assert left_out == {"N/A"}
    assert len(CLASSES) == len(set(CLASSES)) == len(CATEGORY_IDS) == 80
    assert CATEGORY_IDS == tuple(sorted(CATEGORY_IDS)) and (CATEGORY_IDS[0], CATEGORY_IDS[-1]) == (1, 90)


def test_white_text_is_readable_on_every_colour():
    for label in range(1, 501):
        colour = colour_of(label)
        assert all(isinstance(channel, int) and 0 <= channel <= 255 for channel in colour)
        assert 3.0 <= contrast_with_white(colour) < 9.0, (label, colour)  # 9: still visible on black


def test_colours_can_be_told_apart():
    frequent = [CLASSES.index(name.replace("_", " ")) + 1 for name in VOC_CLASSES]
    for first, second in itertools.combinations(frequent, 2):
        assert distance(colour_of(first), colour_of(second)) > 12, (CLASSES[first - 1], CLASSES[second - 1])
    for label in range(1, 200):
        assert distance(colour_of(label), colour_of(label + 1)) > 30
    assert len({colour_of(label) for label in range(1, 81)}) == 80


def test_a_colour_never_changes():
    assert colour_of(1) == colour_of(1) == (255, 68, 78)


@pytest.mark.parametrize("label", [0, -1])
def test_padding_and_ignored_objects_have_no_colour(label):
    with pytest.raises(ValueError, match="labels start at 1"):
        colour_of(label)
