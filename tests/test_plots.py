"""Protects how figures of the notebooks are made: heat lies where the values are, the style does what it says."""

import numpy as np

from odutils.plots import COLOURS, overlay, set_style


def test_heat_lies_where_the_values_are():
    image = np.full((40, 60, 3), 90, np.uint8)
    values = np.zeros((2, 3))
    values[1, 2] = 1
    drawn = overlay(image, values)
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    assert (image == 90).all()  # not modified
    brightness = drawn.astype(int).sum(axis=2)
    hot = brightness[20:, 40:]
    assert (hot == hot[0, 0]).all() and hot[0, 0] > 2 * brightness[:20].max()


def test_ends_of_the_colours_can_be_given():
    image = np.zeros((8, 8, 3), np.uint8)
    half = overlay(image, np.full((1, 1), 0.5), low=0, high=1)
    assert np.array_equal(half, overlay(image, np.full((1, 1), 5.0), low=0, high=10))
    assert np.array_equal(overlay(image, np.full((1, 1), 9.0), low=0, high=1), overlay(image, np.ones((1, 1)), 0, 1))
    assert overlay(image, np.full((1, 1), 3.0)).shape == (8, 8, 3)  # all values equal: no division by zero


def test_the_style_is_matplotlibs_own_settings():
    import matplotlib.pyplot as plt

    with plt.rc_context():
        set_style()
        assert plt.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS.values())
        assert not plt.rcParams["axes.spines.top"]
