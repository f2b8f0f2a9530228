"""Protects the experiments on small objects: contact sheets keep their labels, pasted objects hide none, the variants
of the detector predict in the order of their points, and centre-ness is what FCOS defines."""

import json

import numpy as np
import pytest
import remedies
import small_objects
import torch
from torchvision.ops import box_iou

from odutils.classes import CLASSES
from odutils.datasets import CocoDetections
from odutils.files import DATA
from odutils.inference import Predictor
from odutils.points import point_grid
from odutils.presets import build
from odutils.sample.make import make_sample


@pytest.fixture(scope="module")
def dev(tmp_path_factory):
    """Five drawn images as split dev."""
    root = make_sample(tmp_path_factory.mktemp("small") / "data", images=(5, 1), size=96, objects=(2, 4))
    (root / "train").rename(root / "dev")
    (root / "annotations" / "instances_train.json").rename(root / "annotations" / "instances_dev.json")
    return root


def test_a_contact_sheet_shows_every_object_where_its_label_says(dev, tmp_path, monkeypatch):
    monkeypatch.setattr(small_objects, "SIDE", 2)
    monkeypatch.setattr(small_objects, "CELL", 96)
    small_objects.draw_sheets(dev, tmp_path)
    sheets, images = CocoDetections(tmp_path, "sheets"), CocoDetections(dev, "dev")
    assert len(sheets) == 1 and sheets.image(0).shape == (192, 192, 3)  # the fifth image fills no sheet
    assert sheets.object_count == sum(len(images.boxes[index]) for index in range(4))
    rows = iter(sheets.boxes[0])
    for index in range(4):
        top, left = (96 * part for part in divmod(index, 2))
        for box in images.boxes[index]:
            np.testing.assert_allclose(next(rows), box + [left, top, left, top], atol=0.01)
            x1, y1, x2, y2 = box.astype(int)
            there = sheets.image(0)[top + y1 : top + y2, left + x1 : left + x2].astype(float)
            assert np.abs(there - images.image(index)[y1:y2, x1:x2]).mean() < 12  # JPEG twice


def test_recall_counts_the_small_objects_only(write_dataset, tmp_path):
    objects = [{"bbox": [5, 5, 20, 20], "category_id": 1}, {"bbox": [40, 10, 40, 40], "category_id": 1}]
    objects.append({"bbox": [5, 40, 15, 15], "category_id": 1})
    dataset = CocoDetections(write_dataset(tmp_path, [objects], {1: CLASSES[0]}), "train")
    found = [{"image_id": dataset.ids[0], "category_id": 1, "bbox": one["bbox"], "score": 0.9} for one in objects[:2]]
    assert small_objects.small_recall(dataset, found) == [1, 2]
    assert small_objects.small_recall(dataset, []) == [0, 2]


def test_contact_sheets_are_scored_with_more_than_100_detections():
    predictor, image = Predictor(build("pyramid"), "cpu"), np.zeros((320, 320, 3), np.uint8)
    everything = {"threshold": 0.0, "iou_threshold": 1.0, "class_agnostic": False}
    assert len(predictor(image, **everything).scores) == 100
    assert len(small_objects.keep_many(predictor)(image, **everything).scores) == small_objects.KEPT


def test_pasted_objects_hide_no_other_and_are_labelled(tmp_path, monkeypatch):
    monkeypatch.setattr(remedies, "HERE", tmp_path)
    monkeypatch.setattr(remedies, "IMAGES", (4, 1))
    monkeypatch.setattr(remedies, "WIDTH", 160)
    monkeypatch.setattr(remedies, "OBJECTS", (2, 3))
    remedies.prepare()
    before, after = (CocoDetections(tmp_path / "scenes", split) for split in ("train", "train_pasted"))
    assert before.classes == after.classes == ("object",)
    assert after.object_count > before.object_count
    for index in range(4):
        old, new = before.boxes[index], after.boxes[index][len(before.boxes[index]) :]
        np.testing.assert_allclose(after.boxes[index][: len(old)], old)
        every = torch.from_numpy(after.boxes[index])
        assert len(new) == 0 or box_iou(torch.from_numpy(new), every).fill_diagonal_(0)[:, : len(old)].max() == 0
        for x1, y1, x2, y2 in new.astype(int):
            change = np.abs(after.image(index)[y1:y2, x1:x2].astype(float) - before.image(index)[y1:y2, x1:x2])
            assert change.mean() > 5


@pytest.mark.parametrize("name", remedies.TRAINED)
def test_every_detector_has_a_prediction_for_each_of_its_points(name):
    how = remedies.TRAINED[name]
    backbone = how.get("backbone", remedies.LiteBackbone)(False)
    head = how.get("head", remedies.PyramidHead)(backbone.channels, 1)
    grid = point_grid(64, 128, how.get("strides", remedies.PYRAMID_STRIDES))
    with torch.no_grad():
        logits, codes = head.eval()(backbone.eval()(torch.zeros(1, 3, 64, 128)))
    assert logits.shape == (1, len(grid), 1) and codes.shape == (1, len(grid), 4)


def test_centreness_is_learned_towards_one_in_the_middle_and_zero_at_the_edge():
    grid = point_grid(128, 128)
    loss = remedies.LossWithCentreness(grid)
    box, label, known = (
        torch.tensor([[[0.0, 0.0, 0.25, 0.25]]]),
        torch.tensor([[1]]),
        torch.ones(1, 1, dtype=torch.bool),
    )
    codes = torch.zeros(1, len(grid), 5, requires_grad=True)
    loss((torch.zeros(1, len(grid), 1), codes), box, label, known).backward()
    gradient, positive = codes.grad[0, :, 4], loss.matcher(grid, box, label)[0] == 0
    assert (gradient[~positive] == 0).all()
    x, y = (grid.centres[positive] * 128).unbind(dim=1)  # of an object of 32 px
    wanted = (
        torch.minimum(x, 32 - x) / torch.maximum(x, 32 - x) * torch.minimum(y, 32 - y) / torch.maximum(y, 32 - y)
    ).sqrt()
    torch.testing.assert_close(gradient[positive], (0.5 - wanted) / positive.sum())


def test_scores_hold_the_centreness_outside_of_training():
    head = remedies.CentrenessHead((40, 112, 1280), 2)
    features = [torch.randn(1, c, 64 // s, 64 // s) for c, s in ((40, 8), (112, 16), (1280, 32))]
    head.eval()
    with torch.no_grad():
        plain, codes = super(remedies.CentrenessHead, head).forward(features)
        logits, sides = head(features)
    torch.testing.assert_close(
        logits.sigmoid(), (plain.sigmoid() * codes[..., 4:].sigmoid()).sqrt(), atol=1e-5, rtol=1e-4
    )
    assert sides.equal(codes[..., :4])


def test_committed_results_are_of_these_experiments():
    measured = json.loads((DATA / "experiments" / "small_objects.json").read_text())
    assert set(measured) == set(small_objects.PARTS)
    trained = json.loads((DATA / "experiments" / "remedies.json").read_text())
    assert set(trained["results"]) == set(remedies.TRAINED) | set(remedies.USED)
    assert all(len(runs) == len(trained["seeds"]) for runs in trained["results"].values())
