"""Protects the losses: equal to slow loops, right gradients, no image that breaks them, and no wait for the device."""

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from measuring import Operations
from torchvision.ops import box_iou, generalized_box_iou

from odutils.anchors import article_grid, pyramid_grid
from odutils.iou import paired_iou
from odutils.losses import DetectionLoss, FocalLoss, quality_focal_loss
from odutils.matching import BACKGROUND, IGNORED
from odutils.points import point_grid

CLASSES = 5
KINDS = ["quality", "article"]


def make_loss(kind):
    grid = {"quality": pyramid_grid, "article": article_grid, "points": point_grid}[kind](64, 128)
    return DetectionLoss(grid, "article" if kind == "article" else "quality")


def make_batch(loss, images=3, objects=4, seed=0, nothing_in=1):
    """Random predictions and objects; the last image has padding and an ignored object, `nothing_in` has no object."""
    chance = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(loss.grid), CLASSES, generator=chance) - 2
    codes = torch.randn(images, len(loss.grid), 4, generator=chance) * 0.3
    size = 0.1 + 0.4 * torch.rand(images, objects, 2, generator=chance)
    corner = torch.rand(images, objects, 2, generator=chance) * (1 - size)
    boxes = torch.cat([corner, corner + size], dim=-1)
    labels = torch.randint(1, CLASSES + 1, (images, objects), generator=chance)
    labels[nothing_in], labels[-1, -1], labels[-1, 0] = 0, 0, -1
    boxes[-1, 0] = torch.tensor([0.05, 0.05, 0.95, 0.95])
    boxes = boxes * (labels != 0)[..., None]
    known = torch.ones(images, CLASSES, dtype=torch.bool)
    known[0, 2:4] = False
    return (logits.requires_grad_(), codes.requires_grad_()), boxes, labels, known


# ---- slow versions, one score at a time


def cross_entropy(logit, target):
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def slow_focal(logit, target):  # Lin et al. 2017, eq. 5, alpha 0.25, gamma 1
    p = 1 / (1 + math.exp(-logit))
    p_t, alpha_t = (p, 0.25) if target else (1 - p, 0.75)
    return -alpha_t * (1 - p_t) * math.log(p_t)


def slow_quality_focal(logit, target):  # Li et al. 2020, eq. 4, beta 2
    p = 1 / (1 + math.exp(-logit))
    return abs(target - p) ** 2 * cross_entropy(logit, target)


def slow_loss(loss, predictions, boxes, labels, known):
    """(class loss, box loss) of a batch by loops; uses the match and the decoding, which have tests of their own."""
    logits, codes = (p.detach() for p in predictions)
    match, predicted = loss.matcher(loss.grid, boxes, labels), loss.grid.decode(codes)
    class_loss, box_loss, targets = 0.0, 0.0, 0.0
    for image in range(len(logits)):
        errors = []
        for anchor, m in enumerate(match[image].tolist()):
            box, wanted = predicted[image, anchor][None], boxes[image, m][None]
            iou = float(box_iou(box, wanted)) if m >= 0 else 0.0
            if m >= 0 and loss.kind == "quality":
                errors.append(1 - float(generalized_box_iou(box, wanted)))
                targets += iou
            elif m >= 0:
                errors.append(float((box - wanted).abs().mean()))
            for column, logit in enumerate(logits[image, anchor].tolist()):
                decided = known[image, column] or (loss.kind == "quality" and m >= 0)
                if m == IGNORED or not decided:
                    continue
                is_class = m >= 0 and int(labels[image, m]) == column + 1
                if loss.kind == "quality":
                    class_loss += slow_quality_focal(logit, iou if is_class else 0.0)
                else:
                    class_loss += slow_focal(logit, is_class)
        if errors:
            box_loss += sum(errors) if loss.kind == "quality" else sum(errors) / len(errors)
    if loss.kind == "quality":
        return class_loss / max(1.0, targets), 2 * box_loss / max(1.0, targets)
    return class_loss / CLASSES, box_loss


@pytest.mark.parametrize("kind", KINDS)
def test_equals_slow_loops(kind):
    loss = make_loss(kind)
    batch = make_batch(loss)
    total = loss(*batch)
    expected = slow_loss(loss, *batch)
    assert loss.parts.tolist() == pytest.approx(expected, rel=1e-4)
    assert total.item() == pytest.approx(sum(expected), rel=1e-4)
    match = loss.matcher(loss.grid, *batch[1:3])
    assert (match == IGNORED).any() and (match >= 0).any()  # the batch shows every case


def test_formulas_of_one_score():
    logits = torch.linspace(-30, 30, 13)
    for target in (False, True):
        column, yes = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 1, 1, dtype=torch.bool)
        focal = [FocalLoss.apply(x.view(1, 1, 1), column, yes & target, yes, yes).item() for x in logits]
        assert focal == pytest.approx([slow_focal(x, target) for x in logits.tolist()], rel=1e-4, abs=1e-5)
    for target in (0.0, 0.3, 1.0):
        found = quality_focal_loss(logits, torch.full_like(logits, target))
        expected = [slow_quality_focal(x, target) for x in logits.tolist()]
        assert found.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-9)


def random_pairs(number, dtype=torch.float32):
    """Boxes in pairs, two (number, 4): some overlap, some do not, and of the last pair the first lies in the second."""
    chance = torch.Generator().manual_seed(4)
    corner = torch.rand(2, number, 2, dtype=dtype, generator=chance)
    first, second = torch.cat([corner, corner + torch.rand(2, number, 2, dtype=dtype, generator=chance) * 0.7], dim=-1)
    first[-1] = (second[-1, :2] * torch.tensor([[3], [1]]) + second[-1, 2:] * torch.tensor([[1], [3]])).flatten() / 4
    return first, second


def test_paired_iou_is_the_diagonal_of_torchvisions():
    first, second = random_pairs(40)
    iou, giou = paired_iou(first, second)
    assert (iou == 0).any() and (iou > 0).any()
    torch.testing.assert_close(iou, box_iou(first, second).diagonal())
    torch.testing.assert_close(giou, generalized_box_iou(first, second).diagonal())
    pairs = paired_iou(first[:, None], second)  # (40, 40) each
    torch.testing.assert_close(pairs[1], generalized_box_iou(first, second))


def test_boxes_without_extent_have_an_iou_of_0_and_finite_gradients():
    nothing = torch.zeros(2, 4, requires_grad=True)
    iou, giou = paired_iou(nothing, torch.tensor([[0.0] * 4, [0.2, 0.2, 0.6, 0.6]]))
    giou.sum().backward()
    assert iou.tolist() == [0, 0] and nothing.grad.isfinite().all()


# ---- gradients


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_equal_those_of_the_plain_formulas(kind):
    loss = make_loss(kind)
    predictions, boxes, labels, known = make_batch(loss)
    loss(predictions, boxes, labels, known).backward()
    logits, codes = (p.detach().double().requires_grad_() for p in predictions)
    match = loss.matcher(loss.grid, boxes, labels)
    found = match >= 0
    wanted = torch.stack([b[m.clamp(min=0)] for b, m in zip(boxes, match, strict=True)])[found]
    predicted = loss.grid.decode(codes)[found]
    column = torch.stack([row[m.clamp(min=0)] for row, m in zip(labels, match, strict=True)])[found] - 1
    counted = (match != IGNORED)[..., None] & known[:, None]
    targets = torch.zeros_like(logits)
    if kind == "quality":
        counted = counted | found[..., None]
        iou = box_iou(predicted.detach(), wanted.double()).diagonal()
        targets[found] = targets[found].scatter(1, column[:, None], iou[:, None])
        giou = generalized_box_iou(predicted, wanted.double()).diagonal()
        divisor = targets.detach().sum().clamp(min=1)
        class_loss = (quality_focal_loss(logits, targets) * counted).sum() / divisor
        box_loss = 2 * (1 - giou).sum() / divisor
    else:
        targets[found] = targets[found].scatter(1, column[:, None], 1.0)
        weight = (logits.detach().sigmoid() - targets).abs() * torch.where(targets > 0, 0.25, 0.75)
        focal = weight * F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        class_loss = (focal * counted).sum() / CLASSES
        share = (1 / found.sum(dim=1).clamp(min=1))[:, None].expand_as(found)[found]
        box_loss = ((predicted - wanted).abs().mean(dim=1) * share).sum()
    (class_loss + box_loss).backward()
    for fast, plain in zip(predictions, (logits, codes), strict=True):
        torch.testing.assert_close(fast.grad, plain.grad.float(), rtol=1e-3, atol=1e-6)


def test_quality_focal_gradient_by_differences():
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 0, 0.2, 0.6, 0.9, 1.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, targets), (logits,))


def test_quality_focal_gradient_is_autograds_of_the_plain_formula():
    logits = torch.linspace(-60, 60, 241)[:, None].expand(-1, 5).clone().requires_grad_()
    targets = torch.tensor([0, 0.1, 0.5, 0.9, 1.0]).expand_as(logits)
    entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    plain = (logits.sigmoid() - targets) ** 2 * entropy
    fast = quality_focal_loss(logits, targets)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-6)
    (expected,), (found,) = (torch.autograd.grad(loss.sum(), logits) for loss in (plain, fast))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_paired_iou_gradient_by_differences():
    first, second = random_pairs(12, torch.float64)
    assert (paired_iou(first, second)[0] == 0).any()
    assert torch.autograd.gradcheck(lambda boxes: paired_iou(boxes, second), (first.requires_grad_(),))


@pytest.mark.parametrize("kind", KINDS)
def test_unknown_classes_and_ignored_anchors_learn_nothing(kind):
    loss = make_loss(kind)
    predictions, boxes, labels, known = make_batch(loss)
    loss(predictions, boxes, labels, known).backward()
    match = loss.matcher(loss.grid, boxes, labels)
    logits, codes = predictions
    unknown = logits.grad[0, :, 2:4]
    assert (unknown[match[0] < 0] == 0).all()
    # An anchor with an object has a class, so it is none of the others, even if its source does not label these.
    assert ((unknown[match[0] >= 0] != 0) if kind == "quality" else (unknown == 0)).all()
    assert (logits.grad[match == IGNORED] == 0).all()
    assert (codes.grad[match < 0] == 0).all()
    assert (logits.grad[1:][match[1:] == BACKGROUND] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("objects", [0, 3])
def test_images_without_objects_have_a_finite_loss_and_finite_gradients(kind, objects):
    loss = make_loss(kind)
    predictions = make_batch(loss)[0]
    boxes, labels = torch.zeros(3, objects, 4), torch.zeros(3, objects, dtype=torch.int64)
    total = loss(predictions, boxes, labels, torch.ones(3, CLASSES, dtype=torch.bool))
    total.backward()
    assert total.isfinite() and total > 0 and loss.parts[1] == 0
    assert all(p.grad.isfinite().all() for p in predictions)
    assert (predictions[1].grad == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_extreme_predictions_stay_finite(kind):
    loss = make_loss(kind)
    (logits, codes), *rest = make_batch(loss)
    logits, codes = (logits.detach() * 100).requires_grad_(), (codes.detach() * 100).requires_grad_()
    total = loss((logits, codes), *rest)
    total.backward()
    assert total.isfinite() and logits.grad.isfinite().all() and codes.grad.isfinite().all()


# ---- batches


def part(batch, rows):
    predictions, *rest = batch
    return tuple(p.detach()[rows] for p in predictions), *(tensor[rows] for tensor in rest)


def target_sum(loss, batch):
    """Sum of the batch's targets: the IoU that every matched anchor's box reaches."""
    (_, codes), boxes, labels, _ = batch
    match, predicted = loss.matcher(loss.grid, boxes, labels), loss.grid.decode(codes.detach())
    pairs = [(i, a, int(match[i, a])) for i, a in (match >= 0).nonzero().tolist()]
    return sum(float(box_iou(predicted[i, a][None], boxes[i, m][None])) for i, a, m in pairs)


def test_quality_loss_of_a_batch_is_the_target_weighted_mean_of_its_parts():
    loss = make_loss("quality")
    batch = make_batch(loss, images=6, objects=5)
    parts = [part(batch, slice(0, 2)), part(batch, slice(2, 6))]
    sums = [target_sum(loss, one) for one in parts]
    assert min(sums) > 1 and abs(sums[0] - sums[1]) > 1
    weighted = sum(weight * loss(*one).item() for weight, one in zip(sums, parts, strict=True)) / sum(sums)
    assert loss(*batch).item() == pytest.approx(weighted, rel=1e-5)


def test_article_loss_of_a_batch_is_the_sum_of_its_parts():
    loss = make_loss("article")
    batch = make_batch(loss, images=4)
    whole = loss(*batch).item()
    assert whole == pytest.approx(sum(loss(*part(batch, slice(i, i + 1))).item() for i in range(4)), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_predictions_are_computed_in_float32(kind):
    loss = make_loss(kind)
    predictions, *rest = make_batch(loss)
    half = tuple(p.detach().bfloat16() for p in predictions)
    assert loss(half, *rest).dtype == torch.float32
    assert loss(half, *rest).item() == pytest.approx(loss(tuple(p.float() for p in half), *rest).item(), rel=1e-6)


# ---- speed, as far as a CPU can prove it


class Watch(Operations):
    """Counts operations, and refuses those whose result the host must wait for on a GPU."""

    WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero", "item"}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        assert name not in self.WAITS, f"{name} waits for the device"
        if name.startswith("index"):  # by a mask, it is nonzero in disguise
            masks = [i for i in args[1] if i is not None] if isinstance(args[1], (list, tuple)) else []
            assert all(i.dtype not in (torch.bool, torch.uint8) for i in masks), f"{name} by a mask waits"
        return super().__torch_dispatch__(operation, types, args, kwargs)


def count_operations(loss, batch):
    with Watch() as watch:
        loss(*batch).backward()
    return watch.count


@pytest.mark.parametrize("kind", [*KINDS, "points"])
def test_no_wait_for_the_device_and_no_loop_over_images_or_objects(kind):
    loss = make_loss(kind)
    few, many = make_batch(loss, images=2, objects=3), make_batch(loss, images=16, objects=11)
    loss(*few)  # whatever is computed once only
    assert count_operations(loss, few) == count_operations(loss, many) > 20


def test_the_watch_sees_what_it_should_see():
    values = torch.rand(4)
    for wait in (lambda: values[values > 0.5], lambda: values.sum().item(), lambda: (values > 0).nonzero()):
        with pytest.raises(AssertionError, match="waits"), Watch():
            wait()


# ---- what others set


def test_the_grid_moves_with_the_loss_and_is_not_saved():
    grid = pyramid_grid(64, 64)
    loss = DetectionLoss(grid)
    assert loss.grid is grid and not loss.state_dict()
    loss.to("meta")
    assert loss.grid.boxes.device.type == loss.grid.steps.device.type == loss.grid.centres.device.type == "meta"
    assert loss.grid is loss.grid and loss.grid.counts == grid.counts
    assert grid.boxes.device.type == "cpu"  # others have it, too


def test_the_sum_of_targets_is_reduced_over_processes_before_it_divides():
    loss = make_loss("quality")
    batch = make_batch(loss)
    alone = loss(*batch).item()
    totals = []
    loss.reduce_total = lambda total: totals.append(total) or 2 * total
    assert loss(*batch).item() == pytest.approx(alone / 2, rel=1e-5)
    assert [float(total) for total in totals] == pytest.approx([target_sum(loss, batch)], rel=1e-5)
    loss.reduce_total = lambda total: 0 * total
    assert loss(*batch).item() == pytest.approx(alone * float(totals[0]), rel=1e-5)  # divided by 1 at least


def test_a_matcher_of_ones_own_can_be_given():
    seen = SimpleNamespace(calls=0)

    def match(grid, boxes, labels):
        seen.calls += 1
        return torch.full((len(boxes), len(grid)), BACKGROUND)

    loss = DetectionLoss(article_grid(), "article", matcher=match)
    loss(*make_batch(loss))
    assert seen.calls == 1 and loss.parts[1] == 0
