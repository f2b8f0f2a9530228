"""A detector as an ONNX file: more than twice as fast on a CPU, and of use where there is no PyTorch.

The file takes images as the detector does and gives decoded boxes; its metadata say all that is to be done before and
after, so that the file alone can be used. `onnx_detector.py` runs it.
N images, A anchors, C classes.
"""

import copy
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from odutils import __version__
from odutils.errors import InputError
from odutils.files import replacing
from odutils.images import GREY, MULTIPLE
from odutils.model import Detector
from odutils.points import STRIDES_FROM, decode_sides
from odutils.selection import ANY_CLASS_IOU, SAME_CLASS_IOU

OPSET = 17  # of 2022: every runtime of today reads it


class Decoding(nn.Module):
    """A detector whose answers are boxes: what the file computes."""

    def __init__(self, detector: Detector):
        super().__init__()
        self.detector = with_fixed_padding(copy.deepcopy(detector).cpu().eval())
        self.squash, size = detector.settings.squash, detector.settings.size
        self.grid = self.detector.grid(size, size)  # the only one of a detector of squashed images
        self.strides = STRIDES_FROM[detector.settings.finest_stride]

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (N, 3, H, W) uint8 RGB.   Returns class_logits (N, A, C) and boxes (N, A, 4) xyxy, 0…1."""
        logits, codes = self.detector(images)
        if self.squash:
            boxes = self.grid.decode(codes)
        else:
            boxes = decode_sides(codes, *cells(*images.shape[2:], self.strides))
        return logits, boxes.clamp(0, 1)


def cells(height: int, width: int, strides: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Centres and steps, (A, 2) each, of `points.point_grid`, in operations that ONNX records.

    That one makes tensors of Python numbers: a file traced with them would know one height and width only.
    """
    centres, steps = [], []
    for stride in strides:
        step_x, step_y = stride / torch.as_tensor(width), stride / torch.as_tensor(height)
        x, y = torch.arange(width // stride) + 0.5, torch.arange(height // stride) + 0.5
        y, x = torch.meshgrid(y * step_y, x * step_x, indexing="ij")
        centres.append(torch.stack([x, y], dim=-1).view(-1, 2))  # (rows × columns, 2)
        steps.append(torch.stack([torch.ones_like(x) * step_x, torch.ones_like(y) * step_y], dim=-1).view(-1, 2))
    return torch.cat(centres), torch.cat(steps)


def with_fixed_padding(module: nn.Module) -> nn.Module:
    """Replace timm's convolutions that pad by the size of their input: ONNX Runtime cannot merge such a padding.

    Sides are multiples of MULTIPLE, so each of these (stride 2) sees even ones and pads kernel - 2 pixels, the odd one
    behind, as TensorFlow does.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d) and type(child) is not nn.Conv2d and child.stride == (2, 2):
            padding = child.kernel_size[0] - 2
            before, after = padding // 2, padding - padding // 2
            shape = (child.in_channels, child.out_channels, child.kernel_size, 2)
            plain = nn.Conv2d(*shape, groups=child.groups, bias=child.bias is not None)
            plain.weight, plain.bias = child.weight, child.bias
            setattr(module, name, nn.Sequential(nn.ZeroPad2d((before, after, before, after)), plain))
        else:
            with_fixed_padding(child)
    return module


def describe(detector: Detector) -> dict:
    """All that is to be known for using the file, as it stands in its metadata."""
    settings = detector.settings._asdict()
    letterbox = (
        "scale the image so that its longer side is `size` px, put it into the upper left corner of the smallest "
        "input whose sides are multiples of `multiple` px, fill the rest with `grey`"
    )
    return settings | {
        "input": "images: uint8 RGB, (N, 3, H, W), 0…255; the network normalises them",
        "resize": "stretch the image to `size` × `size` px" if settings["squash"] else letterbox,
        "filter": "bilinear, antialiased: PIL's BILINEAR",
        "multiple": None if settings["squash"] else MULTIPLE,
        "grey": GREY,
        "output": "logits: (N, A, C), score = sigmoid; boxes: (N, A, 4), x1 y1 x2 y2 in 0…1 of the input",
        "suppression": "drop scores below `threshold`; of two boxes of one class that overlap by an IoU above "
        "`same_class_iou` keep the better; then likewise of any two above `any_class_iou`",
        "same_class_iou": SAME_CLASS_IOU,
        "any_class_iou": ANY_CLASS_IOU,
        "odutils": __version__,
        "licence": "Apache-2.0",
    }


def store_in_half_precision(model) -> None:
    """Halve an ONNX model's file: tensors that half precision holds exactly, as those of a weights file, are kept so.

    A cast gives them back in float32; runtimes do that once, when they load the file.
    """
    from onnx import TensorProto, helper, numpy_helper

    stored, casts = [], []
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        half = values.astype(np.float16) if tensor.data_type == TensorProto.FLOAT else None
        if half is not None and np.array_equal(half, values):
            casts.append(helper.make_node("Cast", [f"{tensor.name}.half"], [tensor.name], to=TensorProto.FLOAT))
            tensor = numpy_helper.from_array(half, f"{tensor.name}.half")
        stored.append(tensor)
    nodes = casts + list(model.graph.node)
    for field, content in ((model.graph.initializer, stored), (model.graph.node, nodes)):
        del field[:]
        field.extend(content)


def export(detector: Detector, path: str | Path) -> Path:
    """Write a detector as ONNX; batch, height and width are free (sides multiples of 64), `article`'s size is fixed.

    Raises InputError if onnx is missing, `path` does not end in .onnx or cannot be written to.
    """
    path = Path(path)
    if path.suffix != ".onnx":
        raise InputError(f"{path}: the name of an exported detector ends in .onnx")
    try:
        import onnx
    except ImportError:
        raise InputError("exporting needs the package onnx: pip install onnx onnxruntime") from None
    side = detector.settings.size if detector.settings.squash else 2 * MULTIPLE
    images = torch.zeros(2, 3, side, side, dtype=torch.uint8)
    free = {0: "N"} if detector.settings.squash else {0: "N", 2: "H", 3: "W"}
    names = {"images": free, "logits": {0: "N", 1: "A"}, "boxes": {0: "N", 1: "A"}}
    with replacing(path) as temporary:
        with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
            warnings.simplefilter("ignore")  # dynamo's exporter, which it recommends, takes minutes instead of seconds
            torch.onnx.export(
                Decoding(detector), (images,), str(temporary), dynamo=False, opset_version=OPSET,
                input_names=["images"], output_names=["logits", "boxes"], dynamic_axes=names,
                training=torch.onnx.TrainingMode.PRESERVE,  # the runtime merges batch norm, and here weights stay exact
            )  # fmt: skip
        model = onnx.load(temporary)
        store_in_half_precision(model)
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in describe(detector).items()})
        onnx.save(model, temporary)
    return path
