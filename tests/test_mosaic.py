"""Protects mosaic: four images fill one input, boxes stay with their objects, and all four label the same classes."""

import numpy as np

from odutils.augmentation import Augment
from odutils.mosaic import WithMosaic


def test_mosaic_boxes_follow_their_images(tmp_path, write_dataset, monkeypatch):
    """Images of one colour, each a single object: in the mosaic every box has one colour, and they fill it."""
    colours = np.uint8([[250, 0, 0], [0, 250, 0], [0, 0, 250], [250, 250, 0]])
    objects = [[{"bbox": [0, 0, 96, 64], "category_id": 1}]] * 4
    augment = Augment(64)
    monkeypatch.setattr(augment, "colour", lambda image, chance: image)
    monkeypatch.setattr(augment, "geometry", lambda image, boxes, chance: (image, boxes))
    dataset = WithMosaic(write_dataset(tmp_path, objects, {1: "person"}), "train", 64, augment=augment, share=1.0)
    monkeypatch.setattr(dataset, "image", lambda index: np.full((64, 96, 3), colours[index]))
    for index in range(4):
        image, found, labels, _ = dataset[0, index]
        assert len(found) == len(labels) == 4
        covered = np.zeros((64, 64), int)
        for left, top, right, bottom in (found * 64).round().int().tolist():
            covered[top:bottom, left:right] += 1
            assert image[:, top:bottom, left:right].flatten(1).unique(dim=1).shape[1] == 1
        assert (covered == 1).all()
    assert (dataset[0, 1][0] == dataset[1][0]).all() and (dataset[1, 1][0] != dataset[0, 1][0]).any()


def test_mosaic_mates_label_the_same_classes(tmp_path, write_dataset):
    """Images of two sources: no example holds both, and some examples stay single images."""
    images = [{"source": "few" if i % 2 else "all"} for i in range(8)]
    objects = [[{"bbox": [0, 0, 96, 64], "category_id": 1 + i % 2}] for i in range(8)]
    labelled = {"few": ["dog"]}
    root = write_dataset(tmp_path, objects, {1: "cat", 2: "dog"}, images=images, labelled_classes_by_source=labelled)
    dataset = WithMosaic(root, "train", 64, classes=("cat", "dog"), augment=Augment(64))
    counts = set()
    for index in range(8):
        for epoch in range(5):
            _, _, labels, known = dataset[epoch, index]
            assert set(labels.tolist()) <= {1 + index % 2} and known.tolist() == [index % 2 == 0, True]
            counts.add(len(labels))
    assert max(counts) > 2 and counts <= {0, 1, 2, 3, 4}  # a box of which little is left goes
