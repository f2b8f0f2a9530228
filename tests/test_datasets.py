"""Protects the way from a COCO file to batches: right boxes under the right labels, nothing left out that counts, and
chance that depends on (seed, epoch, index) alone, so that a resumed or a shared run sees what the unbroken one does."""

import json
import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from odutils.augmentation import Augment
from odutils.classes import CATEGORY_IDS, CLASSES
from odutils.datasets import CocoDetections, EpochSampler, collate, make_loader, repeat_factors
from odutils.errors import InputError
from odutils.images import fit, read_image
from odutils.mosaic import WithMosaic

PERSON, CAT, TOOTHBRUSH = 1, 17, 90  # COCO's category ids
CATEGORIES = {PERSON: "person", CAT: "cat", TOOTHBRUSH: "toothbrush"}
OBJECTS = [
    [{"bbox": [48, 16, 24, 32], "category_id": CAT}],
    [],
    [
        {"bbox": [0, 0, 96, 64], "category_id": PERSON, "iscrowd": 1},
        {"bbox": [10, 10, 10, 10], "category_id": PERSON, "difficult": 1},
        {"bbox": [20, 20, 10, 10], "category_id": PERSON, "ignore": 1},
        {"bbox": [30, 30, 10, 10], "category_id": TOOTHBRUSH},
    ],
    [{"bbox": [5, 5, 0, 10], "category_id": CAT}, {"bbox": [90, 60, 20, 20], "category_id": CAT}],
]


@pytest.fixture(scope="module")
def root(tmp_path_factory, write_dataset):
    return write_dataset(tmp_path_factory.mktemp("coco") / "data", OBJECTS, CATEGORIES, "train2017")


@pytest.fixture
def dataset(root):
    return CocoDetections(root, "train2017", size=48, classes=CLASSES)


def test_an_example(root, dataset):
    image, boxes, labels, known = dataset[0]
    expected, _ = fit(read_image(root / "train2017" / "0001.png"), 48)
    assert image.dtype == torch.uint8 and torch.equal(image, torch.from_numpy(expected).permute(2, 0, 1))
    assert torch.allclose(boxes, torch.tensor([[48 / 96, 16 / 96, 72 / 96, 48 / 96]]))  # letterboxed: 96 is the side
    assert labels.tolist() == [CLASSES.index("cat") + 1] and labels.dtype == torch.int64
    assert known.shape == (80,) and known.all()


def test_squashed_boxes_follow_the_squashed_image(root):
    _, boxes, *_ = CocoDetections(root, "train2017", size=64, squash=True)[0]
    assert torch.allclose(boxes, torch.tensor([[48 / 96, 16 / 64, 72 / 96, 48 / 64]]))


def test_images_without_objects_stay(dataset):
    assert len(dataset) == 4
    _, boxes, labels, *_ = dataset[1]
    assert boxes.shape == (0, 4) and labels.shape == (0,)


def test_crowds_and_difficult_objects_are_to_be_ignored(dataset):
    _, _, labels, *_ = dataset[2]
    assert labels.tolist() == [-1, -1, -1, 80]


def test_boxes_without_area_go_and_others_are_cut_off_at_the_edge(dataset):
    _, boxes, labels, _ = dataset[3]
    assert torch.allclose(boxes, torch.tensor([[90 / 96, 60 / 96, 1, 64 / 96]])) and labels.tolist() == [16]


@pytest.mark.parametrize("missing", ["person", "cat"])
def test_a_category_list_without_one_class_shifts_nothing(tmp_path, write_dataset, missing):
    """Label 80 stays the toothbrush although the file has fewer categories, in any order."""
    categories = {id_: name for id_, name in zip(CATEGORY_IDS, CLASSES, strict=True) if name != missing}
    categories = dict(sorted(categories.items(), key=lambda item: item[1]))
    root = write_dataset(tmp_path / "d", [[{"bbox": [1, 1, 9, 9], "category_id": TOOTHBRUSH}]], categories)
    dataset = CocoDetections(root, "train", classes=CLASSES)
    assert dataset[0][2].tolist() == [80] and dataset.category_of[80] == TOOTHBRUSH


def test_own_classes(tmp_path, write_dataset):
    root = write_dataset(tmp_path / "d", [[{"bbox": [1, 1, 9, 9], "category_id": 7}]], {7: "screw", 3: "nut"})
    dataset = CocoDetections(root, "train")
    assert dataset.classes == ("nut", "screw")  # in the order of the ids
    assert dataset[0][2].tolist() == [2] and dataset[0][3].shape == (2,)
    assert CocoDetections(root, "train", classes=("screw", "washer", "nut"))[0][2].tolist() == [1]
    with pytest.raises(InputError, match="screw"):
        CocoDetections(root, "train", classes=("nut",))


def test_own_classes_called_as_cocos_are_own_classes(tmp_path, write_dataset):
    """A file with one of COCO's names has one class, not 80 of which 79 are trained as absent."""
    dog = write_dataset(tmp_path / "dog", [[{"bbox": [1, 1, 9, 9], "category_id": 5}]], {5: "dog"})
    dataset = CocoDetections(dog, "train")
    assert dataset.classes == ("dog",) and dataset[0][2].tolist() == [1] and dataset[0][3].tolist() == [True]
    wide = CocoDetections(dog, "train", classes=CLASSES)  # of a detector of all 80, matched by name
    assert wide[0][2].tolist() == [CLASSES.index("dog") + 1] and wide.category_of == {CLASSES.index("dog") + 1: 5}
    shuffled = dict(enumerate(sorted(CLASSES), start=1))
    coco = write_dataset(tmp_path / "coco", [[{"bbox": [1, 1, 9, 9], "category_id": 1}]], shuffled)
    assert CocoDetections(coco, "train").classes == CLASSES  # all 80: in COCO's order, whatever the file's


def test_objects_are_counted(dataset, tmp_path, write_dataset):
    assert dataset.object_count == 3  # no crowd, nothing difficult, nothing without area
    empty = write_dataset(tmp_path / "empty", [[], []], CATEGORIES)
    assert CocoDetections(empty, "train").object_count == 0


def test_the_shape_is_that_of_the_image(root, dataset, tmp_path, write_dataset):
    assert dataset.shape(0) == dataset.image(0).shape[:2] == (64, 96)
    wrong = write_dataset(tmp_path / "d", [[]], CATEGORIES, images=[{"width": 5, "height": 7}])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (96, 64)).save(wrong / "train" / "0001.png", "JPEG", exif=exif)
    turned = CocoDetections(wrong, "train")
    assert turned.shape(0) == turned.image(0).shape[:2] == (96, 64)


def test_partial_labels(tmp_path, write_dataset):
    sources = [{"source": "voc"}, {"source": "coco"}, {"source": "web"}, {}]
    more = {"labelled_classes_by_source": {"voc": ["person", "cat"], "coco": list(CLASSES)}, "images": sources}
    dataset = CocoDetections(write_dataset(tmp_path / "d", OBJECTS, CATEGORIES, **more), "train", classes=CLASSES)
    known = collate([dataset[i] for i in range(4)])[3]
    assert [CLASSES[i] for i in known[0].nonzero().squeeze(1)] == ["person", "cat"]
    assert known[1:].all()  # an unnamed source labels everything


def test_collate_pads_with_zeros(dataset):
    images, boxes, labels, known = collate([dataset[i] for i in range(4)])
    assert images.shape == (4, 3, 48, 48) and boxes.shape == (4, 4, 4) and labels.shape == (4, 4)
    assert known.shape == (4, 80) and known.dtype == torch.bool
    assert labels.tolist() == [[16, 0, 0, 0], [0, 0, 0, 0], [-1, -1, -1, 80], [16, 0, 0, 0]]
    assert (boxes[labels == 0] == 0).all() and (boxes[labels != 0][:, 2:] > boxes[labels != 0][:, :2]).all()


def test_a_batch_without_any_object(dataset):
    images, boxes, labels, _ = collate([dataset[1], dataset[1]])
    assert images.shape == (2, 3, 48, 48) and boxes.shape == (2, 0, 4) and labels.shape == (2, 0)


def test_keys_that_only_evaluation_needs_may_be_missing(tmp_path, write_dataset):
    root = write_dataset(tmp_path / "d", OBJECTS, CATEGORIES)
    change(root, lambda content: [(one.pop("area"), one.pop("iscrowd")) for one in content["annotations"]])
    [annotation] = CocoDetections(root, "train").coco.imgToAnns[1]
    assert annotation["area"] == 24 * 32 and annotation["iscrowd"] == 0


def change(root, edit):
    path = root / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_missing_and_broken_files(tmp_path, write_dataset):
    root = write_dataset(tmp_path / "d", OBJECTS, CATEGORIES)
    with pytest.raises(InputError, match="no such file"):
        CocoDetections(root, "val")
    (root / "annotations" / "instances_train.json").write_text('{"images": [')
    with pytest.raises(InputError, match="line 1"):
        CocoDetections(root, "train")
    (root / "annotations" / "instances_val.json").write_text("{}")
    with pytest.raises(InputError, match="no such folder"):
        CocoDetections(root, "val")


# ---- the order of an epoch


class Labelled:
    """What EpochSampler needs of a data set: the labels of each image."""

    classes = ("common", "rare", "rarest")

    def __init__(self, labels):
        self.labels = [np.int64(one) for one in labels]


@pytest.fixture
def labelled():
    return Labelled([[1, 1, -1]] * 80 + [[]] * 10 + [[2, 1]] * 9 + [[3]])


def epoch_of(sampler, epoch, start=0):
    sampler.epoch, sampler.start = epoch, start
    order = list(sampler)
    assert len(order) == len(sampler) and all(key[0] == epoch for key in order)
    return [index for _, index in order]


def test_an_epoch_is_a_function_of_seed_and_epoch(labelled):
    first = epoch_of(EpochSampler(labelled, seed=5), 3)
    assert sorted(first) == list(range(100))
    assert first == epoch_of(EpochSampler(labelled, seed=5), 3)
    assert first != epoch_of(EpochSampler(labelled, seed=5), 4)
    assert first != epoch_of(EpochSampler(labelled, seed=6), 3)


def test_repeat_factors_follow_the_formula(labelled):
    """LVIS, section 4.2: r(class) = max(1, sqrt(t / f)), an image has the largest of its classes; ours end at four."""
    factors = repeat_factors(labelled, 0.25)
    assert np.allclose(factors[:90], 1)  # 89 % have class 1; images without objects come once
    assert np.allclose(factors[90:99], (0.25 / 0.09) ** 0.5)
    assert factors[99] == 4  # without the limit 5
    assert (repeat_factors(labelled, 0) == 1).all()


def test_images_come_as_often_as_their_factor_says(labelled):
    sampler, epochs = EpochSampler(labelled, seed=1, balance=0.25), 300
    counts = sum(np.bincount(epoch_of(sampler, epoch), minlength=100) for epoch in range(epochs))
    factors = repeat_factors(labelled, 0.25)
    assert len(sampler) == int(factors.sum())
    assert np.allclose(counts / epochs, factors, atol=0.15)
    one = np.bincount(epoch_of(sampler, 0), minlength=100)
    assert (np.abs(one - factors) < 1 + 1e-9).all()  # never more than one off within an epoch


@pytest.mark.parametrize("balance", [0, 0.25])
def test_processes_share_an_epoch(labelled, balance):
    whole = epoch_of(EpochSampler(labelled, balance=balance), 2)
    shares = [epoch_of(EpochSampler(labelled, balance=balance, process=i, processes=3), 2) for i in range(3)]
    assert {len(share) for share in shares} == {len(whole) // 3}  # as many steps in each: none waits for another
    dealt = [index for step in zip(*shares, strict=True) for index in step]
    assert dealt == whole[: len(dealt)]


def test_a_resumed_epoch_goes_on_where_it_stopped(labelled):
    whole = epoch_of(EpochSampler(labelled, seed=5), 3)
    assert epoch_of(EpochSampler(labelled, seed=5), 3, start=37) == whole[37:]


# ---- loaders


@pytest.fixture(scope="module")
def many(tmp_path_factory, write_dataset):
    """16 images that are all the same, so that only the augmentation can make two inputs differ."""
    objects = [[{"bbox": [20, 20, 50, 30], "category_id": CAT}, {"bbox": [1, 1, 30, 30], "category_id": PERSON}]] * 16
    root = write_dataset(tmp_path_factory.mktemp("many") / "data", objects, CATEGORIES)
    change(root, lambda content: [image.update(file_name="0001.png") for image in content["images"]])
    return CocoDetections(root, "train", size=64, augment=Augment(64, seed=1))


def batches(dataset, epoch=0, workers=0):
    sampler = EpochSampler(dataset, seed=2)
    sampler.epoch = epoch
    return list(make_loader(dataset, 4, sampler, workers))


@pytest.fixture(scope="module")
def of_two_workers(many):
    return batches(many, workers=2)


def test_batches_do_not_depend_on_the_number_of_workers(many, of_two_workers):
    alone = batches(many)
    assert len(alone) == len(of_two_workers) == 4
    for batch, other in zip(alone, of_two_workers, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


@pytest.mark.parametrize("kind", [CocoDetections, WithMosaic])
def test_workers_that_are_not_forked_make_the_same_batches(many, kind):
    """As on macOS, on Windows, and on Linux from Python 3.14: the data set travels to them as a pickle."""
    dataset = kind(many.root.parent, "train", size=64, augment=Augment(64, seed=1))
    copy = pickle.loads(pickle.dumps(dataset))
    assert all(torch.equal(a, b) for a, b in zip(copy[3, 5], dataset[3, 5], strict=True))
    sampler = EpochSampler(dataset, seed=2)
    loader = make_loader(dataset, 4, sampler, workers=1)
    loader.multiprocessing_context = "spawn"
    for sampler.epoch in (0, 1):
        for batch, other in zip(batches(dataset, sampler.epoch), loader, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(batch, other, strict=True))


def test_workers_stay_from_epoch_to_epoch(many):
    sampler = EpochSampler(many, seed=2)
    loader = make_loader(many, 4, sampler, workers=1)
    processes = []
    for sampler.epoch in (0, 1):
        loaded = list(loader)
        processes.append([worker.pid for worker in multiprocessing.active_children()])
        assert all(
            torch.equal(batch[0], alone[0]) for batch, alone in zip(loaded, batches(many, sampler.epoch), strict=True)
        )
    sampler.start = 8  # as after an interruption
    rest = list(loader)
    assert len(rest) == 2 and torch.equal(rest[1][0], loaded[3][0])
    assert processes[0] == processes[1] != []
    assert not loader.pin_memory and make_loader(many, 4, pin_memory=True).pin_memory


def test_two_workers_never_draw_the_same(of_two_workers):
    inputs = torch.cat([images for images, *_ in of_two_workers]).flatten(1)  # (16, 3 × 64 × 64)
    assert len(inputs.unique(dim=0)) == 16


def test_two_epochs_differ(many):
    first, second = (torch.cat([images for images, *_ in batches(many, epoch)]).flatten(1) for epoch in (0, 1))
    assert len(torch.cat([first, second]).unique(dim=0)) == 32


def test_a_loader_without_a_sampler_keeps_the_order_and_the_last_batch(dataset):
    loaded = list(make_loader(dataset, 3, workers=0))
    assert [len(images) for images, *_ in loaded] == [3, 1]
    assert torch.equal(loaded[1][0][0], dataset[3][0])
