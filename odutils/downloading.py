"""Downloads over HTTP that go on where they were cut, and appear only when they are whole."""

import hashlib
import os
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from odutils.errors import InputError
from odutils.files import CANNOT_WRITE, need_space, writing
from odutils.progress import bar

BLOCK = 1 << 20  # bytes read at a time
TIMEOUT = 30  # seconds without a byte after which a connection counts as cut


def difference(path: Path, size: int | None = None, md5: str | None = None) -> str | None:
    """What distinguishes a file from the one expected, in words, or None where nothing does."""
    actual = path.stat().st_size
    if size is not None and actual != size:
        return f"it has {actual:,} bytes instead of {size:,}"
    if md5 is not None:
        digest = hashlib.md5(usedforsecurity=False)  # guards against accidents, as published; not against attackers
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                digest.update(block)
        if digest.hexdigest() != md5:
            return f"its MD5 is {digest.hexdigest()} instead of {md5}"
    return None


def download(
    url: str,
    path: str | os.PathLike,
    size: int | None = None,
    md5: str | None = None,
    attempts: int = 6,
    pause: float = 1.0,
) -> Path:
    """Get `url` over HTTP into `path`, which appears only when it is whole; a file there that is right is kept.

    The bytes gather in `path` + ".part". A cut connection goes on where it stopped; so does the next call, if `md5`
    is given, without which a mixture of two versions would go unnoticed. `attempts` in a row that bring nothing new
    end it; between them lie `pause`, 2 × `pause`, … seconds (30 at most).
    Raises InputError: address refused, connection lost for good, wrong size or MD5, no space, no permission.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    if not url.startswith(("http://", "https://")):
        raise InputError(f"{url}: only http and https addresses can be downloaded")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and difference(path, size, md5) is None:
            return path
        if md5 is None:
            part.unlink(missing_ok=True)
        furthest = failures = 0
        while True:
            try:
                _fetch(url, part, size)
                break
            except (OSError, HTTPException) as error:  # URLError, a reset or timed-out connection, a cut answer
                if getattr(error, "errno", None) in CANNOT_WRITE:
                    raise
                if isinstance(error, HTTPError) and error.code < 500 and error.code not in (408, 416, 429):
                    raise InputError(
                        f"{url}: the server answers {error.code} {error.reason}: check the address"
                    ) from error
                reached = part.stat().st_size if part.exists() else 0
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures >= attempts:
                    advice = "try again later, it goes on where it stopped" if md5 else "try again later"
                    raise InputError(f"{url}: the connection failed {attempts} times ({error}): {advice}") from error
                time.sleep(min(pause * 2 ** (failures - 1), 30))
        if problem := difference(part, size, md5):
            part.unlink()
            raise InputError(f"{url}: not the file expected, {problem}: it was removed, try again")
        os.replace(part, path)
    return path


def _fetch(url: str, part: Path, size: int | None) -> None:
    """One connection: append to `part` what it lacks, or begin again where the server ignores Range."""
    have = part.stat().st_size if part.exists() else 0
    if have and have == size:
        return
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        if error.code == 416:  # what we have is longer than the file
            part.unlink(missing_ok=True)
        raise
    with answer:
        resumed = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        have = have if resumed else 0
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length else size
        if size is not None and total != size:
            raise InputError(f"{url}: the server offers {total:,} bytes instead of {size:,}: not the right file")
        need_space(part.parent, (total or 0) - have, f"downloading {url}")
        with part.open("ab" if resumed else "wb") as file, bar(total=total, unit="B") as shown:
            shown.update(have)
            while block := answer.read(BLOCK):
                file.write(block)
                have += len(block)
                shown.update(len(block))
        if total and have < total:
            raise ConnectionError(f"cut after {have:,} of {total:,} bytes")
