"""A video in, the same video with boxes out: H.264 in mp4, which every browser plays.

A thread decodes while the network works on the frames before. Frame times, pixel shape, colour description and sound of
the source are kept; a video that was turned in the player is turned here.
"""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

from odutils.ahead import Ahead
from odutils.drawing import draw_detections
from odutils.errors import InputError
from odutils.files import replacing
from odutils.progress import bar
from odutils.video.reader import VideoReader
from odutils.video.writer import VideoWriter


class VideoReport(NamedTuple):
    """What became of a video. Seconds are of the clock on the wall; decoding runs beside the other stages."""

    frames: int
    seconds: float  # the whole, from the first frame read to the last written
    decode: float  # frames out of the file, in the thread
    network: float  # predictor: resizing, network, non-maximum suppression
    draw: float
    encode: float  # H.264, sound and file
    wait: float  # time in which there was nothing to do but wait for a decoded frame
    audio: str  # what became of the sound
    notes: tuple[str, ...] = ()  # what a user should know, such as a video that is cut short

    @property
    def rate(self) -> float:
        """Frames a second."""
        return self.frames / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {getattr(self, name):.1f} s" for name in ("decode", "network", "draw", "encode"))
        lines = f"{self.frames} frames in {self.seconds:.1f} s, {self.rate:.1f} a second ({parts}); sound: {self.audio}"
        return "; ".join((lines, *self.notes))


def annotate_video(
    source: str | Path,
    target: str | Path,
    predictor,
    batch_size: int = 4,
    threshold: float | None = None,
    progress: bool = True,
    transform: Callable | None = None,
    limit: int | None = None,
) -> VideoReport:
    """Draw what the predictor finds in each frame of `source` and write the video to `target` (.mp4).

    predictor: has `batch(images, threshold=…) -> [Detections]` and `classes`.   batch_size: frames a call of it.
    transform: `transform(detections, seconds) -> detections`, called in the order of the video, for smoothing.
    limit: stop after so many frames.   An interrupted run leaves nothing at `target`, or what was there before.
    Raises InputError for a source that is no video and a target that cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in (".mp4", ".m4v"):
        raise InputError(f"cannot write {target}: videos are written as .mp4")
    for name, value in (("batch_size", batch_size), ("limit", limit)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}: it must be at least 1")
    if target.exists() and source.exists() and target.samefile(source):
        raise InputError(f"cannot write {target}: it is the source; choose another name")
    options = {} if threshold is None else {"threshold": threshold}
    spent = {"network": 0.0, "draw": 0.0, "encode": 0.0}
    frames = 0
    begun = perf_counter()
    with (
        VideoReader(source, limit) as reader,
        replacing(target) as temporary,
        VideoWriter(temporary, reader) as writer,
        Ahead(reader, 2 * batch_size) as ahead,
        bar(total=reader.total, unit="frames", show=progress) as shown,
    ):
        items = iter(ahead)
        while batch := list(islice(items, batch_size)):
            images = [frame.image for frame, _ in batch if frame is not None]
            started = perf_counter()
            found = predictor.batch(images, **options) if images else []
            spent["network"] += perf_counter() - started
            for index, (frame, sound) in enumerate(batch):
                started = perf_counter()
                if frame is not None:
                    detections = transform(found[index], frame.seconds) if transform else found[index]
                    frame = frame._replace(image=draw_detections(frame.image, detections, predictor.classes))
                drawn = perf_counter()
                writer.write(frame, sound)
                spent["draw"] += drawn - started
                spent["encode"] += perf_counter() - drawn
            frames += len(images)
            shown.update(len(images))
        started = perf_counter()
        writer.finish()
        spent["encode"] += perf_counter() - started
    seconds = perf_counter() - begun
    return VideoReport(
        frames, seconds, ahead.worked, **spent, wait=ahead.waited, audio=writer.sound, notes=tuple(reader.notes)
    )
