"""Weights files: safetensors out, safetensors or a `.pth` in, and nothing in them is ever run."""

import json
import os
import pickle
import re
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from odutils.errors import InputError, plain_text
from odutils.files import looks_like_web_page, replacing

DRIVE_ID = re.compile(r"(?P<id>[\w-]{20,})")  # Google's file ids: 28, 33 or 44 such characters so far
DRIVE_LINK = re.compile(r"^https://(?:drive|docs)\.google\.com/\S*?(?:/d/|[?&]id=)(?P<id>[\w-]{20,})")


def save_weights(path: str | os.PathLike, tensors: dict[str, Tensor], metadata: dict, half: bool = False) -> None:
    """Write tensors and what is to be known about them as safetensors; the file is whole or not there.

    metadata: names to anything JSON can hold; each value is stored as JSON text.
    half: store floating-point tensors as float16, half the size; one with a number beyond float16's 65504 as it is.
    Raises InputError when `path` cannot be written.
    """
    from safetensors.torch import save

    stored = {}
    for name, tensor in tensors.items():
        copy = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # safetensors refuses shared memory
        if half and copy.is_floating_point():
            halved = copy.half()
            if torch.equal(halved.isinf(), copy.isinf()):
                copy = halved
        stored[name] = copy
    content = sort_metadata(save(stored, {name: json.dumps(value) for name, value in metadata.items()}))
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def sort_metadata(content: bytes) -> bytes:
    """A safetensors file with its metadata in alphabetical order: safetensors shuffles them in every process anew.

    Its layout: the header's length in 8 bytes, little-endian; the header in JSON, padded with spaces to 8; the tensors.
    """
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[end:]


def load_weights(path: str | os.PathLike) -> tuple[dict[str, Tensor], dict]:
    """Read a weights file: (name to tensor on the CPU, metadata); floating-point tensors arrive as float32.

    What kind of file it is, its first bytes say, not its name. A `.pth` has empty metadata and is read with
    `weights_only=True`: a pickle that holds anything but tensors could run code, so it is refused.
    Raises InputError for a file that is missing, empty, cut off, a web page or no weights at all.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except FileNotFoundError:
        raise InputError(f"{path}: no such weights file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    if not start:
        raise InputError(f"{path}: the file is empty: download or copy it again")
    if looks_like_web_page(start):
        raise InputError(f"{path}: a web page, not weights: open the link in a browser and save the file itself")
    if start[8:9] == b"{":
        tensors, metadata = _read_safetensors(path)
    elif start.startswith((b"PK", b"\x80")):  # a zip archive as torch.save has written since 1.6, a bare pickle before
        tensors, metadata = _read_pth(path), {}
    else:
        raise InputError(f"{path}: neither a safetensors file nor a .pth of torch.save")
    tensors, metadata = in_current_names(tensors, metadata)
    for name, tensor in tensors.items():
        if tensor.is_floating_point():
            tensors[name] = tensor.float()
    return tensors, metadata


def in_current_names(tensors: dict[str, Tensor], metadata: dict) -> tuple[dict[str, Tensor], dict]:
    """A file's content under the names of today; files written before 0.2 said "body" where we say "backbone"."""
    tensors = {re.sub(r"^body\.", "backbone.", name): tensor for name, tensor in tensors.items()}
    if isinstance(recipe := metadata.get("recipe"), dict):
        renamed = {"body_lr": "backbone_lr", "freeze_body": "freeze_backbone"}
        metadata = metadata | {"recipe": {renamed.get(name, name): value for name, value in recipe.items()}}
    return tensors, metadata


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
            texts = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(f"{path}: damaged or cut off: download or copy it again ({error})") from error
    return tensors, {name: _from_json(text) for name, text in texts.items()}


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text  # written by another program, as plain text


def _read_pth(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:  # a path named .safetensors would have torch take it for one
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path}: holds more than tensors, or is damaged, and a pickle can run code, so it is not opened: "
            "save it again with torch.save(model.state_dict(), path)"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        raise InputError(f"{path}: damaged or cut off: download or copy it again") from error
    is_state = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
    if not is_state or not content:
        raise InputError(f"{path}: holds no tensors by name: save it with torch.save(model.state_dict(), path)")
    return content


def download_weights(id_or_link: str, path: str | os.PathLike) -> Path:
    """Get a weights file that somebody shared on Google Drive, by its id or its link, with gdown.

    Only bytes are moved: nothing is unpickled here, and `load_weights` refuses what could run code.
    Raises InputError when it is no id, gdown is missing or fails, or what came is no file but a web page.
    """
    try:
        import gdown
    except ImportError:
        raise InputError("downloading from Google Drive needs gdown: pip install gdown") from None

    found = DRIVE_ID.fullmatch(id_or_link.strip()) or DRIVE_LINK.search(id_or_link)
    if not found:
        raise InputError(f"{id_or_link!r}: neither a Google Drive id nor a link to a file there")
    path = Path(path)
    advice = "check that it is shared with everyone who has the link, and try again tomorrow if it was asked for often"
    # gdown leaves pieces beside its output when it fails: a folder of its own takes them away
    with replacing(path) as temporary, tempfile.TemporaryDirectory(prefix=".gdown", dir=temporary.parent) as folder:
        fetched = Path(folder, "weights")
        try:
            gdown.download(id=found["id"], output=str(fetched))
        except Exception as error:  # gdown raises its own errors, requests' and plain ones
            reason = plain_text(error)[:200]
            raise InputError(f"Google Drive does not give {found['id']} ({reason}): {advice}") from error
        if not fetched.is_file() or fetched.stat().st_size == 0:
            raise InputError(f"Google Drive gives nothing for {found['id']}: {advice}")
        with fetched.open("rb") as file:
            if looks_like_web_page(file.read(512)):
                raise InputError(f"Google Drive gives a web page for {found['id']}: {advice}")
        os.replace(fetched, temporary)
    return path
