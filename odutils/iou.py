"""IoU and GIoU of boxes one by one, with the gradient written out: on a GPU 32 operations instead of 120.

Boxes are xyxy. (IoU of all objects with all anchors stands in matching.py.)
"""

import torch
from torch import Tensor


def paired_iou(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU (Rezatofighi et al. 2019, algorithm 1) of boxes one by one: (…, 4), (…, 4) -> (…), (…).

    Boxes are xyxy; gradients flow into `first`, the predictions, only. (`torchvision.ops.generalized_box_iou_loss`
    picks by a mask, for which the host has to wait for the device.)
    """
    return PairedIoU.apply(*torch.broadcast_tensors(first, second))


class PairedIoU(torch.autograd.Function):
    """See `paired_iou`. GIoU is written as intersection / union + union / hull - 1."""

    @staticmethod
    def forward(ctx, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        sides = torch.stack([first, second])  # (2, …, 4)
        sides[..., :2].neg_()  # now a box grows with each of its sides: -left, -top, right, bottom
        inner, outer = sides.aminmax(dim=0)  # (…, 4) each: sides of the intersection and of the hull
        left_top, right_bottom = torch.cat([inner[None], outer[None], sides]).chunk(2, dim=-1)  # (4, …, 2) each
        sizes = (left_top + right_bottom).clamp_(min=0)  # (4, …, 2) of intersection, hull, first and second
        areas = sizes[..., 0] * sizes[..., 1]  # (4, …)
        areas[1:].clamp_(min=1e-9)  # boxes without extent, too, have an IoU: 0
        intersection, hull, area, other_area = areas
        union = area + other_area - intersection
        iou = intersection / union
        fill = union / hull
        ctx.save_for_backward(sides, sizes, intersection, hull, union, iou, fill)
        return iou, iou + fill - 1

    @staticmethod
    def backward(ctx, scale_iou: Tensor, scale_giou: Tensor) -> tuple:
        sides, sizes, intersection, hull, union, iou, fill = ctx.saved_tensors
        # Derivatives by the three areas; the first's own area counts through the union, the intersection in both ways.
        of_iou = (scale_iou + scale_giou) / union
        of_fill = scale_giou / hull
        by_union = torch.addcmul(of_fill, of_iou, iou, value=-1)
        by_intersection = (of_iou - by_union) * (intersection > 0)
        by_areas = torch.stack([by_intersection, -fill * of_fill, by_union])  # (3, …)
        # By the sides: an area changes with a width as the height says, and the other way round.
        by_inner, by_outer, by_own = by_areas[..., None] * sizes[:3].flip(-1)  # (…, 2) each
        is_inner = (sides[0] < sides[1]).unflatten(-1, (2, 2))  # (…, 2, 2): left, top; right, bottom
        gradient = torch.where(is_inner, by_inner[..., None, :], by_outer[..., None, :]) + by_own[..., None, :]
        gradient[..., 0, :].neg_()
        return gradient.flatten(-2), None
