"""COCO 2017 from its own server, laid out as `datasets.CocoDetections` reads it."""

import os
import secrets
import shutil
import stat
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from odutils.downloading import download
from odutils.errors import InputError
from odutils.files import need_space, writing
from odutils.progress import bar

SERVER = "http://images.cocodataset.org"


class Archive(NamedTuple):
    """One of COCO's zip files; sizes in bytes."""

    address: str
    size: int
    md5: str
    unpacked: int  # rounded up
    files: int  # images, or annotation files, that it holds


# COCO publishes no checksums. These MD5s stand, all three the same, in two independent projects that download the
# files: PaddlePaddle/PaddleDetection (ppdet/utils/download.py) and mlverse/torchvision (R/dataset-coco.R).
ARCHIVES = {
    "annotations": Archive(
        "annotations/annotations_trainval2017.zip", 252_907_541, "f4bbac642086de4f52a3fdda2de5fa2c", 900_000_000, 6
    ),
    "val2017": Archive("zips/val2017.zip", 815_585_330, "442b8da7639aecaf257c1dceb8ba8c80", 820_000_000, 5_000),
    "train2017": Archive(
        "zips/train2017.zip", 19_336_861_798, "cced6f7f71b7629ddf16f17bbcfab6b2", 19_400_000_000, 118_287
    ),
}


def download_coco(root: str | os.PathLike, splits: tuple[str, ...] = ("val2017",), server: str = SERVER) -> Path:
    """Get COCO's annotations and the images of `splits` ("val2017", "train2017") into `root`.

    Gives root/annotations/instances_val2017.json, root/val2017/*.jpg and so on. What is there already is left alone;
    an interrupted call goes on where it stopped when it is repeated. The zip files are removed once unpacked.
    Raises InputError: unknown split, a folder in the way that is not complete, no space, or what `download` raises.
    """
    root = Path(root)
    if unknown := [split for split in splits if split not in ARCHIVES or split == "annotations"]:
        raise InputError(f"COCO 2017 has no boxes for {unknown[0]!r}: choose from val2017, train2017")
    missing = [name for name in ("annotations", *splits) if not _is_complete(root / name, ARCHIVES[name].files)]
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    need_space(root, _space_needed(root, missing), f"COCO ({', '.join(missing)})")
    for name in missing:
        archive = ARCHIVES[name]
        zipped = download(f"{server}/{archive.address}", root / f"{name}.zip", archive.size, archive.md5)
        extract(zipped, root / name, inside=name)
        zipped.unlink()
    return root


def _is_complete(folder: Path, files: int) -> bool:
    """False where the folder is missing, InputError where it is there but holds fewer files than it should."""
    if not folder.exists():
        return False
    with writing(folder), os.scandir(folder) as entries:
        present = sum(1 for _ in entries)
    if present < files:
        raise InputError(f"{folder}: holds {present:,} of {files:,} files: remove the folder to get it again")
    return True


def _space_needed(root: Path, names: list[str]) -> int:
    """Bytes still to be written at the fullest moment: the zip files go one by one, what they held stays."""
    needed, unpacked = 0, 0
    for name in names:
        here = sum(path.stat().st_size for path in (root / f"{name}.zip", root / f"{name}.zip.part") if path.exists())
        unpacked += ARCHIVES[name].unpacked
        needed = max(needed, unpacked + max(0, ARCHIVES[name].size - here))
    return needed


def extract(archive: str | os.PathLike, folder: str | os.PathLike, inside: str = "") -> Path:
    """Unpack a zip archive into `folder`, which must not exist and appears only when all of it is there.

    inside: take only what lies in this folder of the archive, without the folder's own name.
    Raises InputError for a broken archive, a folder in the way, no space, and for a member that leads outside
    (absolute, with "..", or a symbolic link), in which case nothing at all is unpacked.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise InputError(f"{archive}: no such archive")
    if folder.exists():
        raise InputError(f"{folder}: already exists: remove it to unpack {archive.name} again")
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        with writing(folder), zipfile.ZipFile(archive) as content:
            members = _safe_members(archive, content, inside)
            temporary.mkdir(parents=True)
            need_space(temporary, sum(member.file_size for member in members), f"unpacking {archive.name}")
            _unpack(content, members, temporary)
            os.replace(temporary / inside, folder)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InputError(f"{archive}: broken archive ({error}): remove it and get it again") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _safe_members(archive: Path, content: zipfile.ZipFile, inside: str) -> list[zipfile.ZipInfo]:
    """The files of the archive that lie in `inside`; InputError if any member, wanted or not, leads outside."""
    members = []
    for member in content.infolist():
        name = PurePosixPath(member.filename.replace("\\", "/"))
        is_link = stat.S_ISLNK(member.external_attr >> 16)  # the upper half is the Unix mode
        if is_link or name.is_absolute() or ".." in name.parts or ":" in name.as_posix():
            raise InputError(f"{archive}: its member {member.filename!r} leads outside: nothing was unpacked")
        if not member.is_dir() and name.is_relative_to(inside):
            members.append(member)
    if not members:
        raise InputError(f"{archive}: holds no files{f' in {inside}' if inside else ''}: not the right archive")
    return members


def _unpack(content: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path) -> None:
    for member in bar(members, unit="files"):
        content.extract(member, folder)  # compares the CRC of every file
