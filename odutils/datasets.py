"""A folder in COCO's layout -> examples -> batches.

    root/annotations/instances_train2017.json     root/train2017/*.jpg

A batch is (images (N, 3, S, S) uint8, boxes (N, M, 4) xyxy 0…1 of the input, labels (N, M) int64, known (N, C) bool).
Labels: 0 = padding, 1…C = the classes in order, -1 = ignore (a crowd, or an object marked difficult).
"""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torchvision.datasets import CocoDetection, VisionDataset

from odutils.augmentation import Augment, clip_boxes
from odutils.classes import CLASSES
from odutils.coco.reading import annotation_file, image_path, read_dataset
from odutils.errors import InputError
from odutils.images import fit, read_image, upright_size

MOST_REPEATS = 4  # without a limit six hair driers, eleven times an epoch, made the detector see hair driers everywhere


class CocoDetections(CocoDetection):
    """torchvision's CocoDetection as examples for a detector.

    `dataset[i]` or `dataset[epoch, i]` -> (image (3, S, S) uint8, boxes (M, 4), labels (M,), known (C,)).
    Images without objects stay. The image itself, upright, says how large it is: sizes in the file are not used.
    Images whose source is named in the file's `labelled_classes_by_source` know only those classes; `known` says so,
    and the loss leaves the others alone.

    classes: names in label order; default: the file's own in category-id order, COCO's order if they are COCO's 80.
    augment: None for validation.   squash: as in `images.fit`.
    Raises InputError if there is no such folder or file, or for the first fault that matters (see `coco.reading`).
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        size: int = 320,
        squash: bool = False,
        classes: Sequence[str] | None = None,
        augment: Augment | None = None,
    ):
        file, folder = annotation_file(root, split), Path(root, split)
        VisionDataset.__init__(self, folder)  # CocoDetection's own reads the file in the locale's encoding, unchecked
        self.coco = read_dataset(file)
        self.ids = sorted(self.coco.imgs)
        self.size, self.squash, self.augment = size, squash, augment
        self.files = {id_: image_path(folder, image["file_name"]) for id_, image in self.coco.imgs.items()}
        names = {id_: self.coco.cats[id_]["name"] for id_ in sorted(self.coco.cats)}
        self.classes = tuple(classes or (CLASSES if set(names.values()) == set(CLASSES) else names.values()))
        if unknown := sorted(set(names.values()) - set(self.classes)):
            raise InputError(f"{file}: its categories {', '.join(unknown)} are not among the detector's classes")
        labelled = self.coco.dataset.get("labelled_classes_by_source") or {}
        self.known_of = {s: torch.tensor([c in wanted for c in self.classes]) for s, wanted in labelled.items()}
        self.all_known = torch.ones(len(self.classes), dtype=torch.bool)
        self.label_of = {id_: self.classes.index(name) + 1 for id_, name in names.items()}  # by name: no shift
        self.category_of = {label: id_ for id_, label in self.label_of.items()}
        self.boxes, self.labels = self._objects()

    def _objects(self) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Boxes (M, 4) xyxy in pixels and labels (M,) of each image, of a million objects in a second or two."""
        of_images = [self.coco.imgToAnns.get(image_id, ()) for image_id in self.ids]
        objects = [one for of_image in of_images for one in of_image]  # K
        image = np.repeat(np.arange(len(of_images)), [len(of_image) for of_image in of_images])  # (K,)
        boxes = np.fromiter(chain.from_iterable(one["bbox"] for one in objects), np.float64).reshape(-1, 4)
        visible = (boxes[:, 2:] > 0).all(axis=1)  # (K,)
        boxes[:, 2:] += boxes[:, :2]
        ignored = np.array([one["iscrowd"] or one["difficult"] for one in objects], bool)  # (K,)
        labels = np.array([self.label_of[one["category_id"]] for one in objects], np.int64)  # (K,)
        labels[ignored] = -1
        ends = np.searchsorted(image[visible], range(1, len(of_images)))
        return np.split(np.float32(boxes[visible]), ends), np.split(labels[visible], ends)

    @property
    def object_count(self) -> int:
        """How many objects there are to learn from: crowds, and objects marked difficult, do not count."""
        return sum(int((labels > 0).sum()) for labels in self.labels)

    def image(self, index: int) -> np.ndarray:
        """The image `index` as it is, (H, W, 3) uint8 RGB, upright. Raises InputError if it cannot be read."""
        return read_image(self.files[self.ids[index]])

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of image `index` as it is, upright, as its file's header says: the JSON may err."""
        width, height = upright_size(self.files[self.ids[index]], decode=False)
        return height, width

    def source(self, index: int) -> str | None:
        """What the file says about where image `index` comes from."""
        return self.coco.imgs[self.ids[index]].get("source")

    def known(self, index: int) -> Tensor:
        """Which classes (C,) bool the source of image `index` labels."""
        return self.known_of.get(self.source(index), self.all_known)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        image, boxes, labels = self.image(index), self.boxes[index], self.labels[index]
        if self.augment:
            image, boxes, kept = self.augment(image, boxes, epoch, index)
        else:
            boxes, kept = clip_boxes(boxes, *image.shape[:2], keep=0)
            image, placement = fit(image, self.size, self.squash)
            boxes = placement.to_input(boxes)
        image = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)  # (3, S, S)
        boxes, labels = torch.from_numpy(boxes[kept]), torch.from_numpy(labels[kept])
        return image, boxes, labels, self.known(index)


def collate(examples: list[tuple]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Examples -> one batch (images, boxes, labels, known), boxes and labels zero-padded to the most objects.

    The images stay in memory as they were decoded, channels last: a fifth of the time, and what the network wants.
    """
    images, boxes, labels, known = zip(*examples, strict=True)
    most = max(len(one) for one in labels)
    padded_boxes, padded_labels = torch.zeros(len(images), most, 4), torch.zeros(len(images), most, dtype=torch.int64)
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        padded_boxes[row, : len(box)] = box
        padded_labels[row, : len(label)] = label
    stacked = torch.stack([image.permute(1, 2, 0) for image in images]).permute(0, 3, 1, 2)  # (N, 3, S, S)
    return stacked, padded_boxes, padded_labels, torch.stack(known)


class EpochSampler(Sampler):
    """Yields (epoch, index): a new order each epoch, a function of (seed, epoch) alone.

    balance: 0, or the share of images below which a class counts as rare; an image with a rare class of share f
    comes sqrt(balance / f) times an epoch, MOST_REPEATS at most (Gupta et al. 2019, LVIS, section 4.2, has no limit).
    process, processes: this one's share of every epoch.   Set `epoch` and `start` (examples already seen) before use.
    """

    def __init__(
        self, dataset: CocoDetections, seed: int = 0, balance: float = 0.0, process: int = 0, processes: int = 1
    ):
        self.seed, self.process, self.processes, self.epoch, self.start = seed, process, processes, 0, 0
        self.repeats = repeat_factors(dataset, balance)  # (images,)
        self.length = int(self.repeats.sum()) // processes

    def __len__(self) -> int:
        return self.length - self.start

    def __iter__(self) -> Iterator[tuple[int, int]]:
        chance = np.random.default_rng([self.seed, self.epoch])
        order = chance.permutation(len(self.repeats))
        ticks = np.arange(int(self.repeats.sum())) + chance.random()  # an image covers `repeats` ticks of this ruler
        order = order[np.searchsorted(self.repeats[order].cumsum(), ticks).clip(max=len(order) - 1)]
        mine = chance.permutation(order)[self.process :: self.processes][: self.length]
        return iter([(self.epoch, int(index)) for index in mine[self.start :]])


def repeat_factors(dataset: CocoDetections, balance: float) -> np.ndarray:
    """How often each image comes in an epoch (images,), once to MOST_REPEATS times; see EpochSampler."""
    present = np.zeros((len(dataset.labels), len(dataset.classes) + 1), bool)  # (images, 1 + C)
    for row, labels in zip(present, dataset.labels, strict=True):
        row[labels[labels > 0]] = True
    share = present.mean(axis=0).clip(min=1e-9)  # (1 + C,)
    return np.where(present, np.sqrt(balance / share), 1).max(axis=1, initial=1.0).clip(max=MOST_REPEATS)


def make_loader(
    dataset: CocoDetections, batch_size: int, sampler: Sampler | None = None, workers: int = 2, pin_memory: bool = False
) -> DataLoader:
    """Batches of a data set, made by `workers` processes (0: this one). What they hold does not depend on `workers`.

    The processes stay from epoch to epoch: starting them takes longer than loading hundreds of images.
    pin_memory: put batches where a CUDA device can fetch them while it computes.
    """
    return DataLoader(
        dataset,
        batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        drop_last=sampler is not None and len(sampler) >= batch_size,  # a last batch of one would upset batch norm
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,  # batches a worker holds ready: images differ in size
        pin_memory=pin_memory,
        worker_init_fn=one_thread if workers else None,
    )


def one_thread(_: int) -> None:
    """Workers share the cores with the network: more threads than cores make both slower."""
    import cv2

    torch.set_num_threads(1)
    cv2.setNumThreads(0)
