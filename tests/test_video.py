"""Protects videos: every frame at its time, upright, undistorted, with its sound; and no half video whatever happens.

The videos are made here with PyAV; the predictor is a fake that finds a bright square.
"""

import errno
import sys
import threading
from fractions import Fraction
from typing import NamedTuple

import av
import numpy as np
import pytest

from odutils.classes import CLASSES, colour_of
from odutils.errors import InputError
from odutils.video.annotate import annotate_video
from odutils.video.reader import VideoReader, read_frames

SIDE = 24  # of the bright square, pixels


class Detections(NamedTuple):
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray


class SquareFinder:
    """Finds the bright square; remembers the sizes of its batches and of the images."""

    classes = CLASSES

    def __init__(self, fail_at=None, error=KeyboardInterrupt):
        self.batches, self.shapes, self.fail_at, self.error = [], set(), fail_at, error

    def batch(self, images, threshold=None):
        self.batches.append(len(images))
        if self.fail_at is not None and sum(self.batches) >= self.fail_at:
            raise self.error
        found = []
        for image in images:
            self.shapes.add(image.shape)
            ys, xs = np.nonzero(image.min(axis=2) > 160)
            boxes = np.float32([[xs.min(), ys.min(), xs.max(), ys.max()]]) if len(xs) else np.zeros((0, 4), np.float32)
            found.append(Detections(boxes, np.ones(len(boxes), np.int64), np.ones(len(boxes), np.float32)))
        return found


def forget(detections, seconds):
    """A transform after which there is nothing to draw."""
    return Detections(detections.boxes[:0], detections.labels[:0], detections.scores[:0])


def scene(index, width, height):
    """Dark, with a bright square that starts in the upper left corner and moves to the right."""
    image = np.full((height, width, 3), (40, 60, 90), np.uint8)
    image[30 : 30 + SIDE, 4 + 2 * index : 4 + 2 * index + SIDE] = 230
    return image


def make_video(
    path, times=range(20), rate=20, size=(160, 96), codec="libx264", sound=None, rotation=None, start=0, **options
):
    """Write a video whose frame i is shown at start + times[i] / rate seconds. sound: codec of a sine beside it."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width, stream.height = size
        stream.pix_fmt = {"mjpeg": "yuvj420p", "ffv1": "bgr0"}.get(codec, "yuv420p")
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        if sound:
            audio = container.add_stream(sound, rate=48000, layout="mono")
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(scene(index, *size), format="rgb24")
            frame.pts, frame.time_base = time + start * rate, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            seconds = (max(times) + 1) / rate
            wave = np.sin(np.arange(int(seconds * 48000)) * 2 * np.pi * 440 / 48000)
            frame = av.AudioFrame.from_ndarray((wave * 9000).astype(np.int16)[None], format="s16", layout="mono")
            frame.sample_rate, frame.pts = 48000, start * 48000
            container.mux(audio.encode(frame))
            container.mux(audio.encode(None))
    return path


def times_of(path):
    with av.open(str(path)) as container:
        return [frame.pts * frame.time_base for frame in container.decode(video=0)]


def packets_of(path):
    with av.open(str(path)) as container:
        return [(bytes(packet), packet.pts * packet.time_base) for packet in container.demux(audio=0) if packet.size]


def run(source, target, predictor=None, **options):
    return annotate_video(source, target, predictor or SquareFinder(), progress=False, **options)


def assert_nothing_left(folder, *expected):
    assert sorted(path.name for path in folder.iterdir()) == sorted(expected)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("odutils")]


def test_the_video_is_h264_that_browsers_start_at_once(tmp_path):
    source, target, finder = make_video(tmp_path / "a.mp4"), tmp_path / "out.mp4", SquareFinder()
    report = run(source, target, finder, batch_size=8)
    with av.open(str(target)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 160, 96)
    content = target.read_bytes()
    assert 0 < content.index(b"moov") < content.index(b"mdat")
    assert times_of(target) == times_of(source) == [Fraction(index, 20) for index in range(20)]
    assert report.frames == sum(finder.batches) == 20 and max(finder.batches) == 8
    assert report.audio == "none in the source" and report.notes == ()
    assert_nothing_left(tmp_path, "a.mp4", "out.mp4")


def test_boxes_are_where_the_object_is(tmp_path):
    source, target = make_video(tmp_path / "a.mp4", size=(320, 200)), tmp_path / "out.mp4"
    run(source, target)
    frames = [image for _, image in read_frames(target)]
    for index, image in enumerate(frames):
        middle = image[30 + SIDE // 2].astype(int)
        reds = np.nonzero(np.abs(middle - colour_of(1)).max(axis=1) < 60)[0]
        assert abs(reds.min() - (4 + 2 * index)) <= 2 and abs(reds.max() - (4 + 2 * index + SIDE - 1)) <= 2


def test_the_stages_are_measured_and_add_up(tmp_path):
    report = run(make_video(tmp_path / "a.mp4"), tmp_path / "out.mp4")
    stages = report.network, report.draw, report.encode, report.decode
    assert all(seconds > 0 for seconds in stages)
    assert report.network + report.draw + report.encode + report.wait <= report.seconds
    assert report.rate == pytest.approx(20 / report.seconds)
    assert "20 frames" in str(report) and "network" in str(report)


@pytest.mark.parametrize("name, codec", [("a.avi", "mjpeg"), ("a.mkv", "ffv1")])
def test_odd_sides_grow_by_one_and_nothing_is_moved(tmp_path, name, codec):
    source, target, finder = (
        make_video(tmp_path / name, size=(161, 97), codec=codec),
        tmp_path / "out.mp4",
        SquareFinder(),
    )
    report = run(source, target, finder)
    assert finder.shapes == {(97, 161, 3)} and report.frames == 20
    before, after = [[image for _, image in read_frames(path)] for path in (source, target)]
    assert after[0].shape == (98, 162, 3)
    for old, new in zip(before, after, strict=True):
        assert np.abs(old[60:97, :161].astype(int) - new[60:97, :161]).mean() < 4  # below the box nothing was drawn
    assert np.abs(after[0][60:97, 160].astype(int) - after[0][60:97, 161]).max() < 12  # the new column copies the last


def test_an_odd_video_of_a_turned_phone(tmp_path):
    source = make_video(tmp_path / "a.mkv", size=(161, 97), codec="ffv1", rotation=90)
    finder = SquareFinder()
    run(source, tmp_path / "out.mp4", finder)
    assert finder.shapes == {(161, 97, 3)}
    assert next(read_frames(tmp_path / "out.mp4"))[1].shape == (162, 98, 3)


def test_a_video_that_changes_its_size_keeps_the_first_and_distorts_nothing(tmp_path):
    parts = [make_video(tmp_path / f"{side}.h264", size=(side, 96)).read_bytes() for side in (160, 240)]
    source, target = write(tmp_path / "a.h264", b"".join(parts)), tmp_path / "out.mp4"
    assert run(source, target, transform=forget).frames == 40
    frames = [image for _, image in read_frames(target)]
    assert {image.shape for image in frames} == {(96, 160, 3)}
    ys, xs = np.nonzero(frames[30].min(axis=2) > 190)
    assert abs(np.ptp(xs) - np.ptp(ys)) <= 3 and np.ptp(xs) == pytest.approx(SIDE * 160 / 240, abs=6)
    assert frames[30][80:].max() < 30  # a black bar


def test_a_variable_frame_rate_is_kept(tmp_path):
    times = [0, 1, 2, 9, 10, 30, 31, 32, 50, 51]
    for name in ("a.mkv", "a.mp4"):
        source, target = make_video(tmp_path / name, times=times, rate=25), tmp_path / f"{name}.out.mp4"
        run(source, target)
        assert [float(time) for time in times_of(target)] == pytest.approx([time / 25 for time in times], abs=1e-3)
        assert times_of(target) == times_of(source)
        assert [seconds for seconds, _ in read_frames(source)] == [float(time) for time in times_of(source)]


def test_the_last_frame_is_shown_as_long_as_before(tmp_path):
    source, target = make_video(tmp_path / "a.mp4", times=[0, 5, 10]), tmp_path / "out.mp4"
    run(source, target)
    with av.open(str(source)) as before, av.open(str(target)) as after:
        assert before.duration == after.duration


@pytest.mark.parametrize(
    "sound, name", [("aac", "a.mp4"), ("libmp3lame", "a.mkv"), ("opus", "a.mkv"), ("flac", "a.mkv")]
)
def test_sound_that_mp4_holds_is_copied_byte_for_byte(tmp_path, sound, name):
    source, target = make_video(tmp_path / name, sound=sound), tmp_path / "out.mp4"
    report = run(source, target)
    assert report.audio == "copied" and report.frames == 20
    before, after = packets_of(source), packets_of(target)
    assert len(before) > 5 and [data for data, _ in before] == [data for data, _ in after]
    # against the image the sound does not move (mp4 shows the priming of the encoder before 0, mkv does not)
    shift = after[0][1] - before[0][1]
    assert abs(shift) < 0.03
    assert all(abs(new - old - shift) < 0.003 for (_, old), (_, new) in zip(before, after, strict=True))


def test_other_sound_becomes_aac(tmp_path):
    source, target = make_video(tmp_path / "a.mkv", sound="pcm_s16le"), tmp_path / "out.mp4"
    report = run(source, target)
    assert "AAC" in report.audio and "pcm_s16le" in report.audio
    with av.open(str(target)) as container:
        assert container.streams.audio[0].codec_context.name == "aac"
        samples = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    assert len(samples) / 48000 == pytest.approx(1.0, abs=0.06)
    strongest = np.abs(np.fft.rfft(samples)).argmax() * 48000 / len(samples)
    assert strongest == pytest.approx(440, abs=5)


def test_a_broadcast_that_starts_late_starts_at_zero_with_its_sound(tmp_path):
    source, target = make_video(tmp_path / "a.ts", sound="aac", start=3), tmp_path / "out.mp4"
    with av.open(str(source)) as container:
        assert container.start_time > 1_000_000
    run(source, target)
    assert times_of(target)[0] < 0.1 and len(times_of(target)) == 20
    offsets = [float(packets_of(path)[0][1] - times_of(path)[0]) for path in (source, target)]
    assert offsets[0] == pytest.approx(offsets[1], abs=0.002)


@pytest.mark.parametrize("rotation, corner", [(0, (0, 0)), (90, (1, 0)), (-90, (0, 1)), (180, (1, 1))])
def test_videos_of_a_turned_phone_come_out_upright(tmp_path, rotation, corner):
    """`rotation` is counterclockwise: at 90 what was the upper left corner becomes the lower left one."""
    source, target, finder = make_video(tmp_path / "a.mp4", rotation=rotation), tmp_path / "out.mp4", SquareFinder()
    run(source, target, finder, transform=forget)  # the letters of a tag are bright too
    shape = (96, 160, 3) if rotation in (0, 180) else (160, 96, 3)
    assert finder.shapes == {shape}
    for path in (source, target):
        image = next(read_frames(path))[1]
        assert image.shape == shape
        ys, xs = np.nonzero(image.min(axis=2) > 190)
        assert ((np.median(ys) > shape[0] / 2), (np.median(xs) > shape[1] / 2)) == corner
    with av.open(str(target)) as container:
        assert next(container.decode(video=0)).rotation == 0


def test_a_mirrored_video_comes_out_as_the_player_shows_it(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height = 160, 96
        stream.set_display_matrix([-65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30])
        container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(0, 160, 96), format="rgb24")))
        container.mux(stream.encode(None))
    _, xs = np.nonzero(next(read_frames(path))[1].min(axis=2) > 190)
    assert np.median(xs) > 120


def test_pixels_that_are_not_square_stay_so(tmp_path):
    path, target = tmp_path / "a.mkv", tmp_path / "out.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20)
        stream.width, stream.height = 160, 96
        stream.codec_context.sample_aspect_ratio = Fraction(16, 11)
        for index in range(3):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(scene(index, 160, 96), format="rgb24")))
        container.mux(stream.encode(None))
    run(path, target)
    with av.open(str(target)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 11)


LUMA = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 9: (0.2627, 0.0593)}  # shares of red and blue, ITU-T H.273, table 4


def to_yuv(colour, matrix):
    """An (r, g, b) colour, 0…255, as Y, U, V in 16…235 or 240, by the formulas of H.273."""
    red, green, blue = (channel / 255 for channel in colour)
    of_red, of_blue = LUMA[matrix]
    luma = of_red * red + (1 - of_red - of_blue) * green + of_blue * blue
    blueness, redness = (blue - luma) / (1 - of_blue) / 2, (red - luma) / (1 - of_red) / 2
    return round(16 + 219 * luma), round(128 + 224 * blueness), round(128 + 224 * redness)


@pytest.mark.parametrize("matrix", [None, 1, 5, 9])
def test_colours_stay_what_they_were(tmp_path, matrix):
    path, target = tmp_path / "a.mp4", tmp_path / "out.mp4"
    planes = np.empty((144, 160), np.uint8)  # yuv420p: 96 rows of Y, then U and V at half the size
    for half, colour in enumerate([(20, 140, 60), (150, 30, 40)]):
        luma, blueness, redness = to_yuv(colour, matrix or 5)
        planes[48 * half : 48 * half + 48] = luma
        planes[96 + 12 * half : 108 + 12 * half] = blueness
        planes[120 + 12 * half : 132 + 12 * half] = redness
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=20, options={"crf": "10"})
        stream.width, stream.height = 160, 96
        if matrix is not None:
            stream.codec_context.colorspace = matrix
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        if matrix is not None:
            frame.colorspace = matrix
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    run(path, target)
    for video in (path, target):
        image = next(read_frames(video))[1].astype(int)
        assert np.abs(image[20, 80] - (20, 140, 60)).max() < 8 and np.abs(image[80, 80] - (150, 30, 40)).max() < 8


def test_detections_pass_through_the_hook_in_order(tmp_path):
    seen = []
    source, target = make_video(tmp_path / "a.mp4"), tmp_path / "out.mp4"
    run(source, target, transform=lambda detections, seconds: seen.append(seconds) or forget(detections, seconds))
    assert seen == [index / 20 for index in range(20)]
    for (_, before), (_, after) in zip(read_frames(source), read_frames(target), strict=True):
        assert np.abs(before.astype(int) - after).mean() < 3  # nothing was drawn


def test_the_threshold_reaches_the_predictor(tmp_path):
    class Strict(SquareFinder):
        def batch(self, images, threshold=None):
            assert threshold == 0.7
            return super().batch(images)

    assert run(make_video(tmp_path / "a.mp4"), tmp_path / "out.mp4", Strict(), threshold=0.7).frames == 20


@pytest.mark.parametrize("limit", [1, 7, 20, 99])
def test_a_limit_ends_image_and_sound_together(tmp_path, limit):
    source, target = make_video(tmp_path / "a.mp4", sound="aac"), tmp_path / "out.mp4"
    report = run(source, target, limit=limit)
    assert report.frames == len(times_of(target)) == min(limit, 20) and report.notes == ()
    last = packets_of(target)[-1][1]
    assert last < min(limit, 20) / 20 + 0.05 and last > min(limit, 20) / 20 - 0.06
    assert len(list(read_frames(source, limit=limit))) == min(limit, 20)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError("out of memory")])
def test_an_interrupted_run_leaves_nothing(tmp_path, error):
    source = make_video(tmp_path / "a.mp4", times=range(60), sound="aac")
    with pytest.raises(type(error) if isinstance(error, Exception) else error):
        run(source, tmp_path / "out.mp4", SquareFinder(fail_at=20, error=error))
    assert_nothing_left(tmp_path, "a.mp4")


def test_an_interrupted_run_keeps_the_video_of_the_run_before(tmp_path):
    source, target = make_video(tmp_path / "a.mp4"), tmp_path / "out.mp4"
    target.write_bytes(b"the video of yesterday")
    with pytest.raises(KeyboardInterrupt):
        run(source, target, SquareFinder(fail_at=1))
    assert target.read_bytes() == b"the video of yesterday"
    assert_nothing_left(tmp_path, "a.mp4", "out.mp4")


def test_what_fails_in_the_thread_is_raised_here(tmp_path, monkeypatch):
    def broken(*arguments):
        raise MemoryError("in the thread")

    source = make_video(tmp_path / "a.mp4")
    monkeypatch.setattr("odutils.video.reader.upright", broken)
    with pytest.raises(MemoryError, match="in the thread"):
        run(source, tmp_path / "out.mp4")
    assert_nothing_left(tmp_path, "a.mp4")


def write(path, content):
    path.write_bytes(content)
    return path


def sound_only(path):
    with av.open(str(path), "w") as container:
        audio = container.add_stream("aac", rate=44100, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux([*audio.encode(frame), *audio.encode(None)])
    return path


def image(path):
    import cv2

    cv2.imwrite(str(path), scene(0, 160, 96))
    return path


def without_index(path):
    content = make_video(path).read_bytes()
    return write(path, content[: content.index(b"moov") - 4])  # a recording that broke off: its index comes last


BAD = {
    "no such file": lambda folder: folder / "missing.mp4",
    "is a folder": lambda folder: folder,
    "the file is empty": lambda folder: write(folder / "a.mp4", b""),
    "cannot be read as a video": lambda folder: write(folder / "a.mp4", b"these are words, not a video\n" * 99),
    "no video stream: it is an image, a text": lambda folder: write(folder / "a.txt", b"words\n" * 99),
    "no video stream": lambda folder: sound_only(folder / "a.m4a"),
    "no video stream: it is an image": lambda folder: image(folder / "a.jpg"),
    "cannot be read as a video \\(": lambda folder: without_index(folder / "a.mp4"),
}


@pytest.mark.parametrize("words", BAD)
def test_what_is_no_video_is_named_in_one_sentence(tmp_path, words):
    (tmp_path / "in").mkdir()
    source = BAD[words](tmp_path / "in")
    with pytest.raises(InputError, match=words) as caught:
        run(source, tmp_path / "out.mp4")
    assert str(source) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(InputError):
        list(read_frames(source))
    assert_nothing_left(tmp_path, "in")


@pytest.mark.parametrize("name, options", [("a.mp4", {"movflags": "+faststart"}), ("a.mkv", {})])
def test_a_video_that_is_cut_short_is_annotated_as_far_as_it_goes(tmp_path, name, options):
    source = make_video(tmp_path / name, times=range(200), size=(320, 200), sound="aac", **options)
    content = source.read_bytes()
    write(source, content[: int(len(content) * 0.6)])
    report = run(source, tmp_path / "out.mp4")
    assert 10 < report.frames == len(times_of(tmp_path / "out.mp4")) < 200
    assert any("cut short" in note for note in report.notes)


def test_a_video_with_damaged_packets_loses_only_those(tmp_path):
    source = make_video(tmp_path / "a.mp4", times=range(100), size=(320, 200), movflags="+faststart")
    content = bytearray(source.read_bytes())
    start = content.index(b"mdat") + len(content) // 3
    content[start : start + 400] = b"\xff" * 400
    write(source, bytes(content))
    report = run(source, tmp_path / "out.mp4")
    assert 50 < report.frames <= 100 and report.frames == len(times_of(tmp_path / "out.mp4"))


def test_a_video_of_which_no_frame_can_be_read_is_refused(tmp_path):
    source = make_video(tmp_path / "a.mp4", movflags="+faststart")
    content = bytearray(source.read_bytes())
    start = content.index(b"mdat") + 4
    content[start:] = b"\xff" * (len(content) - start)
    write(source, bytes(content))
    with pytest.raises(InputError, match="no frame"):
        run(source, tmp_path / "out.mp4")
    assert_nothing_left(tmp_path, "a.mp4")


def test_places_that_cannot_be_written_are_named(tmp_path):
    source = make_video(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="videos are written as .mp4"):
        run(source, tmp_path / "out.avi")
    with pytest.raises(InputError, match="it is the source"):
        run(source, tmp_path / "." / "a.mp4")
    with pytest.raises(InputError, match="cannot write"):
        run(source, source / "out.mp4")  # a file where a folder should be
    with pytest.raises(InputError, match="batch_size"):
        run(source, tmp_path / "out.mp4", batch_size=0)
    assert_nothing_left(tmp_path, "a.mp4")


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    source = make_video(tmp_path / "a.mp4")
    monkeypatch.setattr("odutils.video.writer.VideoWriter.write", full)
    with pytest.raises(InputError, match="cannot write .*out.mp4: No space left on device"):
        run(source, tmp_path / "out.mp4")
    assert_nothing_left(tmp_path, "a.mp4")


def test_progress_is_shown_on_terminals_only(tmp_path, capsys, monkeypatch):
    for name, end in (("a.mp4", "20/20"), ("a.h264", "20 frames")):  # a raw stream has no length
        for terminal in (True, False):
            monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
            make_video(tmp_path / name)
            assert annotate_video(tmp_path / name, tmp_path / "out.mp4", SquareFinder()).frames == 20
            captured = capsys.readouterr()
            assert (end in captured.err) == terminal and not captured.out


SLOW = {
    "one frame a second": {"times": range(4), "rate": 1},
    "time lapse": {"times": [0, 10, 60, 600, 601], "rate": 1},
    "late first frame": {"times": range(100, 120)},
    "a long last frame": {"times": [0, 1, 2, 200]},
    "one frame": {"times": [0], "rate": 1},
}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts", "a.webm"])
@pytest.mark.parametrize("kind", SLOW)
def test_a_slow_video_is_not_called_cut_short(tmp_path, name, kind):
    """Frames are decoded up to some frames before they are shown: at one frame a second these are seconds."""
    source = make_video(tmp_path / name, codec="libvpx-vp9" if name == "a.webm" else "libx264", **SLOW[kind])
    with VideoReader(source) as reader:
        frames = [frame for frame, _ in reader if frame is not None]
        assert len(frames) == len(SLOW[kind]["times"]) and reader.notes == []
