"""Runs an ONNX file that `onnx_export.py` wrote, with ONNX Runtime, on the CPU: `Predictor.from_weights("model.onnx")`.

N images, A anchors, C classes.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odutils.errors import InputError, plain_text
from odutils.images import MULTIPLE
from odutils.settings import Settings


class DecodedBoxes:
    """Takes an AnchorGrid's place where the network gives boxes instead of codes: nothing is left to decode."""

    def to(self, device: torch.device | str) -> "DecodedBoxes":
        return self

    def pick(self, index: Tensor) -> "DecodedBoxes":
        return self

    def decode(self, boxes: Tensor) -> Tensor:
        return boxes


class OnnxDetector:
    """An exported file in a Detector's place: `Predictor(OnnxDetector("model.onnx"), "cpu")`.

    Raises InputError if onnxruntime is missing or the file is none that `export` wrote.
    """

    def __init__(self, path: str | Path):
        try:
            import onnxruntime
        except ImportError:
            raise InputError(f"{path}: an ONNX file needs the package onnxruntime: pip install onnxruntime") from None
        if not Path(path).is_file():
            raise InputError(f"{path}: no such weights file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # leaves idle cores to the others
        try:
            self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its classes share no base of their own
            raise InputError(f"{path}: damaged, or no ONNX file ({plain_text(error)[:200]})") from None
        self.settings = read_metadata(self.session.get_modelmeta().custom_metadata_map, str(path))

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images: (N, 3, H, W) uint8 RGB.   Returns class_logits (N, A, C) and boxes (N, A, 4) xyxy, 0…1."""
        size = self.settings.size
        shape = tuple(images.shape[2:])
        if self.settings.squash and shape != (size, size):
            raise ValueError(f"the sides of an input are {size} px, not {shape}")
        if any(side % MULTIPLE for side in shape) and not self.settings.squash:
            raise ValueError(f"the sides of an input are multiples of {MULTIPLE} px, not {shape}")
        found = self.session.run(["logits", "boxes"], {"images": np.ascontiguousarray(images.numpy())})
        return tuple(map(torch.from_numpy, found))

    def grid(self, height: int, width: int) -> DecodedBoxes:
        return DecodedBoxes()

    def to(self, device: torch.device) -> "OnnxDetector":
        if device.type != "cpu":
            raise InputError(f"an ONNX file runs on the CPU, not on {device}: export is for machines without a GPU")
        return self

    def eval(self) -> "OnnxDetector":
        return self


def read_metadata(texts: dict[str, str], name: str) -> Settings:
    """The settings of a detector from an ONNX file's metadata. Raises InputError if they are not there."""
    try:
        metadata = {key: json.loads(text) for key, text in texts.items()}
    except ValueError:
        raise InputError(f"{name}: not written by `python -m odutils export`: its metadata are not JSON") from None
    return Settings.from_metadata(metadata, name)
