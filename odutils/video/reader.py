"""Videos in, through PyAV: upright frames with their times, and the packets of sound between them."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from odutils.errors import InputError, UnreadableError

NOT_VIDEOS = ("_pipe", "image2", "tty", "ansi")  # FFmpeg reads images and even texts as videos of some frames


class Frame(NamedTuple):
    """One frame of a video."""

    image: np.ndarray  # (H, W, 3) uint8 RGB, upright
    seconds: float  # since the video's beginning
    pts: int  # the same in the stream's time base
    duration: int  # in the stream's time base, 0 if unknown


class VideoReader:
    """The frames of a video, each with the packets of sound that came before it.

    Iterating yields (Frame, [packets]) and at last (None, [packets]). `notes` then says what a user should know.
    Raises InputError when the file is missing, is no video, has no video stream, or when no frame of it can be read.
    """

    def __init__(self, path: str | Path, limit: int | None = None):
        import av

        self.path, self.limit, self.notes = Path(path), limit, []
        if not self.path.is_file():
            raise InputError(f"{path}: no such file" if not self.path.exists() else f"{path}: is a folder, not a video")
        if not self.path.stat().st_size:
            raise UnreadableError(f"{path}: cannot be read as a video (the file is empty)")
        try:
            self.container = av.open(str(path), metadata_errors="replace")
        except av.FFmpegError as error:
            raise UnreadableError(f"{path}: cannot be read as a video ({error.strerror})") from None
        covers = av.stream.Disposition.attached_pic  # the cover of a song is no video
        videos = [stream for stream in self.container.streams.video if not stream.disposition & covers]
        if self.container.format.name.endswith(NOT_VIDEOS) or not videos:
            self.container.close()
            raise UnreadableError(f"{path}: has no video stream: it is an image, a text or a sound, not a video")
        self.stream, self.audio = videos[0], next(iter(self.container.streams.audio), None)
        self.stream.thread_type = "AUTO"
        self.start = max(0, self.container.start_time or 0) / av.time_base  # seconds; broadcasts do not begin at 0

    def __enter__(self) -> "VideoReader":
        return self

    def __exit__(self, *exception) -> None:
        self.container.close()

    @property
    def total(self) -> int | None:
        """How many frames there will be, as far as the file tells."""
        total, rate = self.stream.frames, self.stream.average_rate
        if not total and self.container.duration and rate:
            total = round(self.container.duration / 1e6 * rate)
        return min(total, self.limit) if total and self.limit else total or None

    def __iter__(self) -> Iterator[tuple[Frame | None, list]]:
        import av

        base = self.stream.time_base
        step = max(1, round(1 / (self.stream.average_rate or 25) / base))  # the usual time between two frames
        converter = av.video.reformatter.VideoReformatter()  # shared: setting one up takes longer than using it
        frames = packets = damaged = 0
        reached = 0.0  # seconds: the latest end of what was read
        longest = step  # time between two frames
        previous = end = None
        sound = []
        for packet in self._packets():
            time = None if packet.dts is None else float(packet.dts * packet.time_base)
            if end is not None and (time is None or time > end + 1):  # the sound lies within a second of its image
                break
            shown = packet.dts if packet.pts is None else packet.pts  # frames are decoded earlier than they are shown
            if shown is not None:
                reached = max(reached, float((shown + (packet.duration or 0)) * packet.time_base))
            if packet.stream.type == "audio":
                if end is None or time < end:
                    sound.append(packet)
                continue
            packets += packet.dts is not None
            try:
                decoded = packet.decode() if end is None else []
            except av.FFmpegError:
                decoded, damaged = [], damaged + 1
            for frame in decoded[: self.limit and self.limit - frames]:
                pts = frame.pts - round(self.start / base) if frame.pts is not None else None
                if previous is not None and (pts is None or pts <= previous):  # a clock that is missing or runs back
                    pts = previous + (step if pts is None else 1)
                if previous is not None:
                    longest = max(longest, pts - previous)
                previous = pts or 0
                yield Frame(upright(frame, converter), float(previous * base), previous, frame.duration or 0), sound
                frames, sound = frames + 1, []
                if frames == self.limit:
                    end = self.start + float((previous + (frame.duration or step)) * base)
        if not frames:
            raise UnreadableError(f"{self.path}: no frame of it can be read: the video is broken or of an unknown kind")
        if end is None:
            self._note_damage(packets, damaged, reached, slack=0.5 + float(longest * base))
        yield None, sound

    def _packets(self) -> Iterator:
        import av

        try:
            yield from self.container.demux([stream for stream in (self.stream, self.audio) if stream is not None])
        except av.FFmpegError as error:
            self.notes.append(f"reading stopped early ({error.strerror}): the file is damaged")
            yield from self._flushed()

    def _flushed(self) -> Iterator:
        """What makes the decoder hand out the frames that it holds back."""
        import av

        packet = av.Packet()
        packet.stream = self.stream
        yield packet

    def _note_damage(self, packets: int, damaged: int, reached: float, slack: float) -> None:
        """slack: seconds that may be missing at the end; some files do not say how long their last frame is shown."""
        if damaged:
            self.notes.append(f"{damaged} damaged packets were left out")
        streams = [stream for stream in (self.stream, self.audio) if stream is not None and stream.duration]
        ends = [float(((stream.start_time or 0) + stream.duration) * stream.time_base) for stream in streams]
        promised = max(ends) if ends else (self.container.duration or 0) / 1e6  # Matroska counts from 0
        counted = self.stream.frames if "mp4" in self.container.format.name else 0  # elsewhere it is an estimate
        if packets < counted or reached < promised - slack:
            lengths = f"{promised - self.start:.1f} s were announced, {reached - self.start:.1f} s could be read"
            self.notes.append(f"the video is cut short: {lengths}")


def upright(frame, converter) -> np.ndarray:
    """The (H, W, 3) uint8 RGB image of a PyAV frame, turned and mirrored as the video's display matrix says."""
    from av.sidedata.sidedata import Type

    image = converter.reformat(frame, format="rgb24").to_ndarray()
    matrix = frame.side_data.get(Type.DISPLAYMATRIX)
    if matrix is None:
        return image
    # x' = a x + c y, y' = b x + d y in 16.16 fixed point (FFmpeg's libavutil/display.h); phones use quarter turns only.
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 0, 2), c, b  # (W, H, 3)
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def read_frames(path: str | Path, limit: int | None = None) -> Iterator[tuple[float, np.ndarray]]:
    """Yield (seconds since the beginning, (H, W, 3) uint8 RGB upright) for each frame of a video. Raises InputError."""
    with VideoReader(path, limit) as reader:
        for frame, _ in reader:
            if frame is not None:
                yield frame.seconds, frame.image
