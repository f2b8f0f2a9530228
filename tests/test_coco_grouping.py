"""Protects which images belong together, and that whole groups are shared out closely, with every class in every part
where that is possible, and always in the same way."""

from pathlib import Path

import numpy as np
import pytest

from odutils.coco.grouping import assign, group_of
from odutils.errors import InputError


def group(by="name", file_name="a.jpg", **more):
    return group_of({"id": 5, "file_name": file_name, **more}, 3, by, Path("instances_all.json"))


@pytest.mark.parametrize(
    "file_name, expected",
    [
        ("paper_07.jpg", "paper"),
        ("paper_8.jpg", "paper"),
        ("paper.jpg", "paper"),
        ("paper_07_dark.jpg", "paper"),
        ("video1_frame_0005.png", "video1_frame"),
        ("2024-05-01 12.30.jpg", "2024-05-01 12"),
        ("clip/frame_1.jpg", "clip/frame"),
        ("clip\\frame_1.jpg", "clip/frame"),
        ("scene 3 (2).jpg", "scene 3"),
        ("paper_07_jpg.rf.1a2b3c4d5e.jpg", "paper"),  # Roboflow's copies of one image
        ("paper.rf.99ff.jpg", "paper"),
    ],
)
def test_names_up_to_the_last_number(file_name, expected):
    assert group(file_name=file_name) == expected


def test_names_that_are_only_numbers_are_one_group():
    assert group(file_name="000123.jpg") == group(file_name="000124.jpg") != group(file_name="x/000123.jpg")


def test_folders_images_and_keys_of_the_entry():
    assert group("folder", "a/b/1.jpg") == "a/b" and group("folder", "1.jpg") == "."
    assert group("image") == "5"
    assert group("scene", scene="beach") == "beach" and group("scene", scene=7) == "7"
    for scene in ({}, {"scene": None}, {"scene": ["a"]}):
        with pytest.raises(InputError, match=r"json: images\[3\] has no .* 'scene'; its keys are file_name, id"):
            group("scene", **scene)


def shares_of(counts, part_of, parts=3):
    return np.stack([counts[part_of == part].sum(axis=0) for part in range(parts)]) / counts.sum(axis=0)


def random_counts(groups, classes, seed=0):
    """(G, 2 + C): objects, images, objects of each class; some groups many times as large as others."""
    chance = np.random.default_rng(seed)
    of_class = chance.poisson(chance.uniform(0.2, 4, (groups, 1)) * chance.uniform(0.2, 2, classes), (groups, classes))
    return np.column_stack([of_class.sum(axis=1), chance.integers(1, 20, groups), of_class]).astype(float)


@pytest.mark.parametrize("groups, closeness", [(12, 0.12), (60, 0.03), (3000, 0.01)])
def test_the_shares_of_objects_come_close(groups, closeness):
    for seed in range(3):
        counts = random_counts(groups, 4, seed)
        shares = shares_of(counts, assign(counts, [0.6, 0.2, 0.2], seed))
        np.testing.assert_allclose(shares[:, 0], [0.6, 0.2, 0.2], atol=closeness)
        assert (shares[:, 2:] > 0).all()


def test_a_rare_class_gets_into_every_part():
    counts = random_counts(40, 3)
    counts[:, 4] = 0
    counts[[3, 17, 31], 4] = 1  # in as many groups as there are parts
    assert (shares_of(counts, assign(counts, [0.8, 0.1, 0.1]))[:, 4] > 0).all()


def test_every_part_gets_a_group_even_if_one_group_has_nearly_all_objects():
    counts = np.array([[100, 50, 100], [1, 1, 1], [0, 1, 0]], float)
    assert sorted(assign(counts, [0.6, 0.2, 0.2]).tolist()) == [0, 1, 2]
    assert sorted(assign(counts, [0.98, 0.01, 0.01]).tolist()) == [0, 1, 2]
    empty = np.array([[0, 1, 0]] * 4, float)  # no object at all
    assert set(assign(empty, [0.5, 0.5]).tolist()) == {0, 1}


def test_the_seed_decides():
    counts = random_counts(30, 2)
    first = assign(counts, [0.5, 0.5], seed=1)
    assert (assign(counts, [0.5, 0.5], seed=1) == first).all()
    assert any((assign(counts, [0.5, 0.5], seed=seed) != first).any() for seed in range(2, 6))
