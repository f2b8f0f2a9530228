"""The article's own code as a baseline, where a file that holds it is at hand."""

import importlib.util
import os
from pathlib import Path

from odutils.augmentation import import_imgaug

SIZE = 224  # px of its square input


class ArticleCode:
    """The article's functions behind the interface of naive.py: background column, boxes in -1…1, its data set."""

    def __init__(self, path: Path, device: str = "cpu"):
        import_imgaug()
        os.environ["ARTICLE_DEVICE"] = device  # it chooses one when it is imported, by itself a GPU
        spec = importlib.util.spec_from_file_location("article", path)
        self.code = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.code)

    def loss(self, logits, codes, boxes, labels):
        return self.code.ssd_loss((logits, codes), boxes * 2 - 1, labels)

    def select(self, logits, codes, threshold, _):
        return self.code.nms(codes[None], logits[None], conf_thresh=threshold)

    def Examples(self, dataset):
        examples = object.__new__(self.code.CocoDataset)
        examples.root, examples.coco, examples.ids = dataset.root, dataset.coco, dataset.ids
        examples.transforms, examples.transform = None, self.code.Xfm((SIZE, SIZE), augment=True)
        examples._load_categories()
        return examples
