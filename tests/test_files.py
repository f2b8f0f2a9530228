"""Protects the promise that no half-done file ever looks done: results, downloads over a bad line, archives."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from odutils import files
from odutils.coco import download as coco_download
from odutils.coco.download import Archive, download_coco, extract
from odutils.downloading import download
from odutils.errors import InputError
from odutils.files import locked, replacing

CONTENT = bytes(range(256)) * 20_000  # 5.1 MB
MD5 = hashlib.md5(CONTENT).hexdigest()
RunOut = namedtuple("RunOut", "total used free")


class BadLine(BaseHTTPRequestHandler):
    """Serves `server.pages` as badly as the test wishes, and writes down the Range of every request."""

    def do_GET(self):
        wish = self.server.wish
        self.server.ranges.append(self.headers.get("Range"))
        statuses = wish.get("statuses", [])
        if statuses:
            return self.send_error(statuses.pop(0))
        content = self.server.pages[self.path]
        start = 0
        if self.headers.get("Range") and wish.get("honour_range", True):
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start + wish.get("lie", 0)))
        self.end_headers()
        cuts = wish.get("cuts", [])
        self.wfile.write(content[start : cuts.pop(0)] if cuts else content[start:])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), BadLine)
    server.pages, server.wish, server.ranges = {"/file.bin": CONTENT}, {}, []
    server.handle_error = lambda *_: None  # a client that hangs up is what some tests are about
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def get(server, folder, **options):
    return download(f"{server.url}/file.bin", folder / "file.bin", pause=0, **options)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_result_appears_when_the_block_ends_and_the_folder_is_made(tmp_path):
    target = tmp_path / "runs" / "image.png"
    with replacing(target) as temporary:
        assert temporary.parent == target.parent and temporary.suffix == ".png"
        temporary.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new" and names(target.parent) == ["image.png"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_a_failed_block_leaves_the_old_result(tmp_path, failure):
    target = tmp_path / "result.json"
    target.write_text("old")
    with pytest.raises(failure), replacing(target) as temporary:
        temporary.write_text("half")
        raise failure
    assert target.read_text() == "old" and names(tmp_path) == ["result.json"]


def test_a_writer_that_writes_nothing_is_noticed(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "result.json"):
        pass
    assert names(tmp_path) == []


def test_a_full_disk_and_a_folder_in_the_way_are_told(tmp_path):
    with (
        pytest.raises(InputError, match="cannot write .*result.csv: No space left"),
        replacing(tmp_path / "result.csv"),
    ):
        raise OSError(28, "No space left on device")
    with pytest.raises(InputError, match="Is a directory"), replacing(tmp_path):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), replacing(tmp_path / "file" / "result.csv"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="limits of a process are POSIX")
@pytest.mark.parametrize("opened", [False, True], ids=["path", "file"])
def test_a_checkpoint_that_finds_no_space_is_told_and_the_old_one_stays(tmp_path, opened):
    """torch raises a RuntimeError about its zip writer there, with no OSError behind it."""
    target = tmp_path / "checkpoint.pt"
    target.write_text("old")
    script = f"""
import resource, torch
from odutils.files import locked, replacing
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
with replacing({str(target)!r}) as temporary:
    torch.save(torch.zeros(100_000), open(temporary, "wb") if {opened} else temporary)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"odutils.errors.InputError: cannot write {target}: "), last
    assert target.read_text() == "old" and names(tmp_path) == ["checkpoint.pt"]


def test_other_errors_of_torch_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="out of memory"), replacing(tmp_path / "checkpoint.pt"):
        raise RuntimeError("CUDA out of memory")


def test_other_errors_of_the_block_stay_what_they_are(tmp_path):
    with pytest.raises(ConnectionResetError), replacing(tmp_path / "result.csv"):
        raise ConnectionResetError(104, "Connection reset by peer")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_told(tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(InputError, match="Permission denied"), replacing(tmp_path / "result.csv"):
            pass
    finally:
        tmp_path.chmod(0o700)


def test_missing_permission_is_told_where_root_may_do_everything(tmp_path, monkeypatch, server):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.touch", refuse)
    with pytest.raises(InputError, match="cannot write .*result.csv: Permission denied$"):
        with replacing(tmp_path / "result.csv"):
            pass
    with pytest.raises(InputError, match="cannot write .*out.mp4: Permission denied: .*video.mp4"):
        with files.writing(tmp_path / "out.mp4"):
            refuse(tmp_path / "videos" / "video.mp4")
    usual = files.Path.open

    def wrapped(path, *arguments, **options):
        return (refuse if path.suffix == ".part" else usual)(path, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.open", wrapped)
    with pytest.raises(InputError, match="cannot write .*file.bin: Permission denied"):
        get(server, tmp_path)
    assert len(server.ranges) == 1  # not a matter of trying again


HOLD = """
import sys
from odutils.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_work_in_one_folder_and_a_killed_one_leaves_no_lock(tmp_path):
    folder = tmp_path / "runs" / "train"
    arguments = [sys.executable, "-c", HOLD, str(folder)]
    other = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(InputError, match="train: another process"), locked(folder):
            pass
        with locked(tmp_path / "runs" / "other"):
            pass
    finally:
        other.kill()
        other.communicate()
    for _ in range(2):
        with locked(folder):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), locked(tmp_path / "file" / "train"):
        pass


def test_processes_that_load_images_keep_no_lock_of_a_training_that_was_killed(tmp_path):
    """They are forked from it and notice its end only after some seconds."""
    script = """
import os, sys, time
from odutils.files import locked
with locked(sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""
    arguments = [sys.executable, "-c", script, str(tmp_path)]
    training = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    child = int(training.stdout.readline())
    try:
        training.kill()
        training.wait()
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_download_is_verified_and_kept(tmp_path, server):
    path = get(server, tmp_path, size=len(CONTENT), md5=MD5)
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["file.bin"]
    get(server, tmp_path, size=len(CONTENT), md5=MD5)
    assert server.ranges == [None]  # the second call sent no request
    path.write_bytes(CONTENT[:-1])
    assert get(server, tmp_path, size=len(CONTENT), md5=MD5).read_bytes() == CONTENT


def test_a_cut_connection_goes_on_where_it_stopped(tmp_path, server):
    server.wish = {"cuts": [1_000_000, 3_000_000]}
    assert get(server, tmp_path, size=len(CONTENT), md5=MD5).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1000000-", "bytes=3000000-"]


def test_the_next_call_goes_on_too_but_only_where_a_mixture_would_be_noticed(tmp_path, server):
    part = tmp_path / "file.bin.part"
    part.write_bytes(CONTENT[:2_000_000])
    get(server, tmp_path, size=len(CONTENT), md5=MD5)
    assert server.ranges == ["bytes=2000000-"]
    (tmp_path / "file.bin").unlink()
    part.write_bytes(b"x" * 2_000_000)
    assert get(server, tmp_path, size=len(CONTENT)).read_bytes() == CONTENT
    assert server.ranges[1:] == [None]


@pytest.mark.parametrize("length", [len(CONTENT), len(CONTENT) + 5])
def test_a_part_as_long_as_the_file_or_longer_is_no_obstacle(tmp_path, server, length):
    (tmp_path / "file.bin.part").write_bytes((CONTENT + b"extra")[:length])
    server.wish = {"statuses": [416]} if length > len(CONTENT) else {}
    assert get(server, tmp_path, size=len(CONTENT), md5=MD5).read_bytes() == CONTENT


def test_a_server_that_ignores_range_begins_again_and_not_for_ever(tmp_path, server):
    server.wish = {"honour_range": False, "cuts": [1_000_000, 2_000_000]}
    assert get(server, tmp_path, md5=MD5).read_bytes() == CONTENT
    (tmp_path / "file.bin").unlink()
    server.wish["cuts"] = [1_000_000] * 100
    with pytest.raises(InputError, match="failed 4 times .*cut after 1,000,000 of 5,120,000"):
        get(server, tmp_path, md5=MD5, attempts=4)
    assert len(server.wish["cuts"]) == 96 and names(tmp_path) == ["file.bin.part"]


def test_wrong_bytes_never_get_the_name(tmp_path, server):
    server.pages["/file.bin"] = b"!" + CONTENT[1:]
    with pytest.raises(InputError, match=f"its MD5 is .* instead of {MD5}"):
        get(server, tmp_path, size=len(CONTENT), md5=MD5)
    assert names(tmp_path) == []


def test_another_size_is_told_before_the_first_byte(tmp_path, server):
    with pytest.raises(InputError, match="offers 5,120,000 bytes instead of 7"):
        get(server, tmp_path, size=7)
    assert names(tmp_path) == []


@pytest.mark.parametrize("lie", [-1000, 1000])
def test_a_lie_about_the_length_is_noticed(tmp_path, server, lie):
    server.wish = {"lie": lie}
    with pytest.raises(InputError):
        get(server, tmp_path, md5=MD5, attempts=2)
    assert "file.bin" not in names(tmp_path)


def test_what_cannot_get_better_is_asked_once_and_the_rest_again(tmp_path, server):
    server.wish = {"statuses": [404]}
    with pytest.raises(InputError, match="answers 404"):
        get(server, tmp_path)
    server.wish = {"statuses": [500, 503]}
    assert get(server, tmp_path).read_bytes() == CONTENT
    server.wish = {"statuses": [500] * 9}
    with pytest.raises(InputError, match="failed 3 times .*500"):
        download(f"{server.url}/file.bin", tmp_path / "other", attempts=3, pause=0)
    assert len(server.wish["statuses"]) == 6


def test_nobody_at_home_and_a_strange_address(tmp_path):
    with pytest.raises(InputError, match="the connection failed 2 times"):
        download("http://127.0.0.1:9/file", tmp_path / "file", attempts=2, pause=0)
    with pytest.raises(InputError, match="only http"):
        download("file:///etc/hostname", tmp_path / "file")


def test_space_is_looked_at_before_the_first_byte(tmp_path, server, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: RunOut(10, 9, 1_000_000))
    with pytest.raises(InputError, match="needs 5 MB and only 1 MB are free"):
        get(server, tmp_path)
    assert names(tmp_path) == []


def zip_of(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_folder_of_an_archive_is_unpacked(tmp_path):
    archive = zip_of(tmp_path / "a.zip", {"val/1.jpg": b"one", "val/deep/2.jpg": b"two", "other.txt": b"three"})
    assert extract(archive, tmp_path / "all") == tmp_path / "all"
    assert names(tmp_path / "all") == ["other.txt", "val"]
    extract(archive, tmp_path / "images", inside="val")
    assert (tmp_path / "images" / "deep" / "2.jpg").read_bytes() == b"two"
    assert names(tmp_path) == ["a.zip", "all", "images"]
    with pytest.raises(InputError, match="already exists"):
        extract(archive, tmp_path / "all")
    with pytest.raises(InputError, match="no files in train"):
        extract(archive, tmp_path / "new", inside="train")


@pytest.mark.parametrize("name", ["../out.txt", "a/../../out.txt", "/out.txt", "..\\out.txt", "C:\\out.txt"])
def test_a_member_that_leads_outside_stops_everything(tmp_path, name):
    archive = zip_of(tmp_path / "a.zip", {"good.txt": b"", name: b"bad"})
    with pytest.raises(InputError, match="leads outside"):
        extract(archive, tmp_path / "folder")
    assert names(tmp_path) == ["a.zip"]


def test_a_symbolic_link_stops_everything(tmp_path):
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(link, "/etc")
    with pytest.raises(InputError, match="leads outside"):
        extract(tmp_path / "a.zip", tmp_path / "folder")


def test_broken_archives_leave_nothing(tmp_path, monkeypatch):
    archive = zip_of(tmp_path / "a.zip", {"1.txt": b"first", "2.txt": b"second" * 100})
    whole = archive.read_bytes()
    for broken in (b"", whole[:60], whole.replace(b"secondsecond", b"SECONDsecond", 1)):
        archive.write_bytes(broken)
        with pytest.raises(InputError, match="broken archive"):
            extract(archive, tmp_path / "folder")
    with pytest.raises(InputError, match="no such archive"):
        extract(tmp_path / "none.zip", tmp_path / "folder")
    archive.write_bytes(whole)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: RunOut(10, 9, 100))
    with pytest.raises(InputError, match="unpacking a.zip needs"):
        extract(archive, tmp_path / "folder")
    assert names(tmp_path) == ["a.zip"]


@pytest.fixture
def small_coco(tmp_path, server, monkeypatch):
    """A COCO of two images on the local server."""
    members = {
        "annotations": {"annotations/instances_train2017.json": b"{}", "annotations/instances_val2017.json": b"{}"},
        "val2017": {"val2017/1.jpg": b"one", "val2017/2.jpg": b"two"},
    }
    for name, content in members.items():
        archive = zip_of(tmp_path / "made.zip", content).read_bytes()
        address = coco_download.ARCHIVES[name].address
        server.pages[f"/{address}"] = archive
        entry = Archive(address, len(archive), hashlib.md5(archive).hexdigest(), 1000, 2)
        monkeypatch.setitem(coco_download.ARCHIVES, name, entry)
    return server


def test_coco_lies_as_the_data_set_reads_it(tmp_path, small_coco):
    root = download_coco(tmp_path / "coco", server=small_coco.url)
    found = sorted(str(path.relative_to(root)) for path in root.rglob("*.*"))
    annotations = [os.path.join("annotations", f"instances_{split}2017.json") for split in ("train", "val")]
    assert found == [*annotations, os.path.join("val2017", "1.jpg"), os.path.join("val2017", "2.jpg")]
    asked = len(small_coco.ranges)
    download_coco(root, server=small_coco.url)
    assert len(small_coco.ranges) == asked


def test_coco_refuses_what_would_look_done(tmp_path, small_coco, monkeypatch):
    with pytest.raises(InputError, match="'test2017'"):
        download_coco(tmp_path / "coco", splits=("test2017",), server=small_coco.url)
    (tmp_path / "coco" / "val2017").mkdir(parents=True)
    with pytest.raises(InputError, match="holds 0 of 2 files"):
        download_coco(tmp_path / "coco", server=small_coco.url)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: RunOut(10, 9, 1500))
    with pytest.raises(InputError, match="COCO .* needs"):
        download_coco(tmp_path / "other", server=small_coco.url)
    assert small_coco.ranges == []


def test_the_checkout_s_data_is_found():
    assert files.DATA == files.PACKAGE.parent / "data"


def test_results_lie_in_the_checkout_wherever_the_process_is(tmp_path, monkeypatch):
    here = files.RUNS
    assert not here.is_absolute() and here.resolve() == files.PACKAGE.parent / "runs"
    monkeypatch.chdir(tmp_path)
    from odutils.files import RUNS

    assert RUNS != here and RUNS.resolve() == files.PACKAGE.parent / "runs"
    monkeypatch.setattr(files, "IN_CHECKOUT", False)
    assert files.RUNS.resolve() == tmp_path / "runs"
    with pytest.raises(AttributeError, match="no attribute 'WALKS'"):
        _ = files.WALKS
