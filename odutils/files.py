"""Files that are either whole or not there, and where the project keeps its own."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from odutils.errors import InputError

PACKAGE = Path(__file__).resolve().parent
CHECKOUT_DATA = PACKAGE.parent / "data"
# A checkout keeps its data beside the package; an installed wheel carries a copy of what it needs inside the package.
IN_CHECKOUT = (PACKAGE.parent / "pyproject.toml").is_file()
DATA = CHECKOUT_DATA if IN_CHECKOUT else PACKAGE / "data"


def __getattr__(name: str) -> Path:
    """`files.RUNS`, the folder for results: a checkout's `runs`, else `runs` in the current folder.

    Relative to the current folder of the moment, so that what a notebook prints names no folder of the machine.
    """
    if name != "RUNS":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not IN_CHECKOUT:
        return Path("runs")
    try:
        return Path(os.path.relpath(PACKAGE.parent / "runs"))
    except ValueError:  # on Windows there is no way from one drive to another
        return PACKAGE.parent / "runs"


# What the machine says when the place is at fault; other OSErrors (a lost connection, say) are not about writing.
CANNOT_WRITE = {
    getattr(errno, name)
    for name in "EACCES EPERM EROFS ENOSPC EDQUOT EFBIG EEXIST EISDIR ENOTDIR ENOTEMPTY ENAMETOOLONG EIO".split()
    if hasattr(errno, name)
}


# torch.save raises a RuntimeError with such words, and no OSError, when the disk is full.
TORCH_CANNOT_WRITE = ("PytorchStreamWriter failed", "unexpected pos")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk (no permission, no space, a folder in the way) into an InputError on `path`."""
    try:
        yield
    except RuntimeError as error:
        if not any(words in str(error) for words in TORCH_CANNOT_WRITE):
            raise
        free = shutil.disk_usage(path.parent).free
        raise InputError(f"cannot write {path}: no space left? {free / 1e6:,.0f} MB are free") from error
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        elsewhere = error.filename and Path(os.fsdecode(error.filename)).parent != path.parent
        culprit = f": {error.filename}" if elsewhere else ""  # the temporary file's name would only puzzle
        raise InputError(f"cannot write {path}: {error.strerror or error}{culprit}") from error


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with its suffix; rename it onto `path` only when the block ends well.

    The folder is made if it is missing. The temporary file is removed when the block fails, whatever the reason.
    Raises InputError when the place cannot be written to: before the block where that can be known, else after it.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem[:100]}.{secrets.token_hex(4)}{path.suffix}")
    with writing(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()  # a place that refuses says so now, not after an hour of work
        temporary.unlink()  # and a writer that fails without a word leaves nothing to rename
        try:
            yield temporary
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a path beside `folder`; what the block puts there becomes `folder` only when the block ends well.

    folder: resolved, so that a link is followed, not replaced; by the end of the block it must not exist.
    Nothing is left of the temporary folder when the block fails. Raises InputError when the place cannot be written to.
    """
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        with writing(folder):
            yield temporary
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def locked(folder: str | os.PathLike) -> Iterator[None]:
    """Keep other processes out of `folder` while the block runs; the folder is made if it is missing.

    The system holds the lock (on the file `.lock`) for the process and drops it when the process ends, even if killed.
    Raises InputError where another process has it.
    """
    path = Path(folder, ".lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    with file:
        try:
            _lock(file)
        except OSError as error:  # another number: a file system that has no locks, where we work without
            if error.errno in (errno.EACCES, errno.EAGAIN):
                message = "another process works in this folder: wait for it, or take another folder"
                raise InputError(f"{folder}: {message}") from None
        yield


def _lock(file) -> None:
    if os.name == "nt":
        import msvcrt

        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not inherited by processes that load images


def looks_like_web_page(start: bytes) -> bool:
    """Whether a file's first bytes are HTML: what a server sends in its stead when it wants a log-in or a click."""
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head", b"<!--"))


def need_space(folder: Path, size: int, purpose: str) -> None:
    """Raise InputError unless `folder` (existing) has room for `size` more bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise InputError(f"{folder}: {purpose} needs {size / 1e6:,.0f} MB and only {free / 1e6:,.0f} MB are free")
