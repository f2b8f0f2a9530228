"""Protects weights files: what is saved comes back, and nothing a file holds is run or half believed."""

import gzip
import json
import os
import pickle
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from odutils.errors import InputError
from odutils.presets import load_detector
from odutils.weights import download_weights, load_weights, save_weights

DRIVE = "1aBcDeFgHiJkLmNoPqRsTuVwXyZ012345"
METADATA = {"preset": "pyramid", "classes": ["person", "cat"], "input_size": [320, 320], "AP50": 0.65}


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 6, generator=generator)
    return {"head.weight": weight, "turned": weight.T, "same": weight, "steps": torch.tensor(2**40), "mean": weight[0]}


def test_what_is_saved_comes_back(tmp_path):
    path = tmp_path / "new" / "w.safetensors"
    save_weights(path, some_tensors(), METADATA)
    tensors, metadata = load_weights(path)
    assert metadata == METADATA
    assert tensors.keys() == some_tensors().keys()
    for name, tensor in some_tensors().items():
        assert torch.equal(tensors[name], tensor) and tensors[name].dtype == tensor.dtype
    assert os.listdir(path.parent) == ["w.safetensors"]


def test_a_file_of_version_0_1_still_loads(tmp_path):
    """Written by that version, whose tensors and recipe said "body"; every parameter is a constant that we know."""
    path = tmp_path / "old.safetensors"
    path.write_bytes(gzip.decompress((Path(__file__).parent / "data" / "pyramid_0.1.0.safetensors.gz").read_bytes()))
    detector = load_detector(path)
    assert detector.settings == ("pyramid", ("wheel", "cyclist"), 128, False, 0.25, "", 8)
    names = [name for name, _ in detector.named_parameters()]
    assert names[0].startswith("backbone.")
    for index, (name, tensor) in enumerate(detector.state_dict().items()):
        if tensor.is_floating_point() and name not in ("mean", "std"):
            assert (tensor == index % 61 / 64).all(), name
    _, metadata = load_weights(path)
    assert metadata["recipe"]["backbone_lr"] == 2e-4 and metadata["recipe"]["freeze_backbone"] is False
    assert not [name for name in metadata["recipe"] if "body" in name]


def test_half_is_half_the_file_and_float32_again_when_loaded(tmp_path):
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    tensors = {"weight": torch.linspace(-3, 3, 10_000), "steps": torch.tensor(2**40)}
    save_weights(whole, tensors, {})
    save_weights(half, tensors, {}, half=True)
    assert half.stat().st_size < 0.52 * whole.stat().st_size
    loaded, _ = load_weights(half)
    assert loaded["weight"].dtype == torch.float32 and loaded["steps"].item() == 2**40
    assert torch.equal(loaded["weight"], tensors["weight"].half().float())
    save_weights(half, {"weight": torch.tensor([1e6, 1e-6])}, {}, half=True)  # what float16 cannot hold stays as it is
    assert torch.equal(load_weights(half)[0]["weight"], torch.tensor([1e6, 1e-6]))


def test_other_programs_read_ours_and_we_read_theirs(tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "w.safetensors"
    save_weights(path, some_tensors(), METADATA)
    with safe_open(path, framework="pt") as file:
        assert {name: json.loads(text) for name, text in file.metadata().items()} == METADATA
    save_file({"a": torch.ones(2, dtype=torch.bfloat16)}, path, metadata={"format": "pt"})
    tensors, metadata = load_weights(path)
    assert metadata == {"format": "pt"} and torch.equal(tensors["a"], torch.ones(2))


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pth_loads_whatever_its_name(tmp_path, zipped):
    path = tmp_path / "article.weights"
    torch.save(torch.nn.Linear(3, 2).state_dict(), path, _use_new_zipfile_serialization=zipped)
    tensors, metadata = load_weights(path)
    assert metadata == {} and tensors["weight"].shape == (2, 3)


class Trap:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("write", [torch.save, lambda trap, path: path.write_bytes(pickle.dumps(trap, protocol=2))])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, write):
    write(Trap(tmp_path / "trapped"), tmp_path / "w.pth")
    with pytest.raises(InputError, match="w.pth: holds more than tensors"):
        load_weights(tmp_path / "w.pth")
    assert os.listdir(tmp_path) == ["w.pth"]


@pytest.mark.parametrize(
    "content", [[1, 2], {"a": 1}, {}, torch.ones(2), {"model": {"a": torch.ones(1)}}, {1: torch.ones(1)}]
)
def test_a_pth_that_is_no_state_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="no tensors by name"):
        load_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("kept", [0.001, 0.05, 0.5, 0.999])
def test_a_file_cut_off_anywhere_is_refused(tmp_path, suffix, kept):
    path = tmp_path / f"w{suffix}"
    tensors = {"weight": torch.randn(200, 50)}
    torch.save(tensors, path) if suffix == ".pth" else save_weights(path, tensors, METADATA)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(InputError, match="w.*: (damaged|holds more than tensors, or is damaged)"):
        load_weights(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n<!DOCTYPE html><html><title>Quota exceeded</title>", "web page"),
        (b"just some text, nothing else", "neither"),
        (b"\x10\0\0\0\0\0\0\0{not json at all}", "damaged"),
        (b"\xff\xff\xff\xff\xff\xff\xff\x7f{}", "damaged"),
        (b"abc", "neither"),
        (b"PK\x03\x04 and then nothing", "damaged"),
    ],
)
def test_what_is_no_weights_file_is_told_in_a_sentence(tmp_path, content, said):
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"w.safetensors: .*{said}") as caught:
        load_weights(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_told(tmp_path):
    with pytest.raises(InputError, match="no such weights file"):
        load_weights(tmp_path / "none.safetensors")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_weights(tmp_path)


def test_no_place_to_write_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        save_weights(tmp_path / "file" / "w.safetensors", some_tensors(), {})


@pytest.fixture
def drive(monkeypatch):
    """Stands in for gdown: `drive.answer` is the file's content or the error; `drive.asked` are the ids."""
    stand_in = types.SimpleNamespace(asked=[], answer=b"")

    def download(id, output):
        stand_in.asked.append(id)
        if isinstance(stand_in.answer, Exception):
            with open(f"{output}.piece", "w"):  # as gdown does
                raise stand_in.answer
        if stand_in.answer is not None:
            with open(output, "wb") as file:
                file.write(stand_in.answer)

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    return stand_in


@pytest.mark.parametrize(
    "given",
    [
        DRIVE,
        f"https://drive.google.com/file/d/{DRIVE}/view?usp=sharing",
        f"https://drive.google.com/uc?export=download&id={DRIVE}",
        f"https://drive.google.com/open?id={DRIVE}&usp=drive_fs",
    ],
)
def test_weights_come_by_id_or_link(tmp_path, drive, given):
    drive.answer = b"anything, even a pickle: only moved, not opened"
    path = download_weights(given, tmp_path / "new" / "article.pth")
    assert drive.asked == [DRIVE] and path.read_bytes() == drive.answer
    assert os.listdir(path.parent) == ["article.pth"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("Cannot retrieve\n  the public link"), r"\(Cannot retrieve the public link\): check"),
        (ConnectionError("no route"), "no route"),
        (b"<!DOCTYPE html><html>Sign in", "web page"),
        (b"", "gives nothing"),
        (None, "gives nothing"),
    ],
)
def test_what_google_refuses_is_told_and_leaves_nothing(tmp_path, drive, answer, said):
    drive.answer = answer
    with pytest.raises(InputError, match=said):
        download_weights(DRIVE, tmp_path / "article.pth")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("given", ["", "short", "https://example.com/w.pth", "https://drive.google.com/drive/my-drive"])
def test_what_is_neither_id_nor_link_asks_nobody(tmp_path, drive, given):
    with pytest.raises(InputError, match="neither a Google Drive id nor a link"):
        download_weights(given, tmp_path / "article.pth")
    assert drive.asked == []


def test_without_gdown_the_cure_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(InputError, match="pip install gdown"):
        download_weights(DRIVE, tmp_path / "article.pth")
