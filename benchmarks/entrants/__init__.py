"""The entrants of the race: the article's way, the peers' way, ours, and ours with one thing changed.

Every entrant but one begins with the same ImageNet backbone, EfficientNet-Lite0. An entrant is a function of a `Course`
that returns a `Run`.
"""

from functools import partial

from entrants.article import article, article_by_our_recipe, fixed_article
from entrants.course import Course, Run
from entrants.ours import (
    HeadWithoutFusion,
    Lite2Backbone,
    LossWithFocal,
    LossWithL1,
    LossWithTaskAlignment,
    pyramid,
)
from entrants.peers import fcos, ssdlite
from odutils.anchors import pyramid_grid
from odutils.augmentation import Augment
from odutils.fine import FineBackbone, FineHead
from odutils.matching import match_iou
from odutils.mosaic import WithMosaic
from odutils.points import STRIDES_FROM, point_grid

__all__ = ["ENTRANTS", "Course", "Run"]

WITH_STRIDE_4 = dict(backbone=FineBackbone, head=FineHead, grid=partial(pyramid_grid, strides=STRIDES_FROM[4]))
ENTRANTS = {
    "article": ("the article's recipe: its code as it stands", article),
    "article_mended": ("the article's recipe, its defects fixed (preset `article`)", fixed_article),
    "article_our_recipe": ("the same by our recipe: rates, schedule, backbone trained", article_by_our_recipe),
    "ssdlite": ("torchvision's SSDLite head and loss", ssdlite),
    "fcos": ("torchvision's FPN, FCOS head and loss", fcos),
    "pyramid": ("`pyramid`", pyramid),
    "points": ("`points`: `pyramid` without anchors", partial(pyramid, grid=point_grid)),
    "no_fusion": ("without the feature pyramid", partial(pyramid, head=HeadWithoutFusion)),
    "match_iou": ("IoU matching instead of ATSS", partial(pyramid, matcher=match_iou)),
    "l1": ("L1 instead of GIoU", partial(pyramid, loss=LossWithL1)),
    "focal": ("focal loss instead of quality focal loss", partial(pyramid, loss=LossWithFocal)),
    "no_crop": ("neither crop nor zoom-out", partial(pyramid, augment=partial(Augment, crop=False))),
    "no_average": ("without the moving average of weights", partial(pyramid, average=False)),
    "trained_norms": ("batch norm of the backbone trained", partial(pyramid, frozen_norms=False)),
    "no_mask": ("partial labels taken for complete", partial(pyramid, masked=False)),
    "task_aligned": ("task-aligned matching instead of ATSS", partial(pyramid, loss=LossWithTaskAlignment)),
    "mosaic": ("mosaic of four images for every second one", partial(pyramid, source=WithMosaic)),
    "fine": ("a fifth level, at stride 4", partial(pyramid, **WITH_STRIDE_4)),
    "lite2": ("a larger backbone, EfficientNet-Lite2", partial(pyramid, backbone=Lite2Backbone)),
}
