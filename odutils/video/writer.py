"""Videos out, through PyAV: H.264 in mp4 with the clock, the colours and the sound of the video they were made from."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from odutils.video.reader import Frame, VideoReader

COPIED_SOUND = {"aac", "mp3", "ac3", "eac3", "alac", "opus", "flac"}  # what mp4 holds and players know; else AAC
BT709, BT2020 = 1, 9  # of ITU-T H.273
YUV_MATRICES = {BT709, 5, 6, BT2020}  # 5 and 6: BT.601 (625 and 525 lines); others cannot be kept
AAC_RATES = {8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000}
ENCODER = {"preset": "veryfast", "crf": "20"}  # thin lines and letters stay sharp


class VideoWriter:
    """Writes frames and sound as H.264 (yuv420p) mp4 that starts to play before it is loaded whole.

    H.264 halves the colour planes, so both sides must be even: an odd side gets one more row or column, a copy of its
    last. Cutting would lose a line, and scaling would blur all of them.
    Use it as a context manager; call `finish` when all is written. `sound` says what becomes of the sound.
    """

    def __init__(self, path: str | Path, reader: VideoReader):
        import av

        self.reader, self.stream, self.shape, self.durations = reader, None, None, {}
        self.container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self.audio, self.sound = None, "none in the source"

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *exception) -> None:
        import av

        try:
            self.container.close()
        except (av.FFmpegError, ValueError):  # the file is thrown away, and the first error is the one to tell
            if kind is None:
                raise

    def write(self, frame: Frame | None, sound: list) -> None:
        """Write a frame (None: no more of them) and the packets of sound that came before it."""
        import av

        if self.stream is None and frame is not None:
            self._begin(frame.image.shape)
        if frame is not None:
            image = av.VideoFrame.from_ndarray(self._fitted(frame.image), format="rgb24")
            image = self.converter.reformat(image, format="yuv420p", dst_colorspace=self.matrix, dst_color_range="MPEG")
            image.pts, image.time_base, image.duration = frame.pts, self.reader.stream.time_base, frame.duration
            self.durations[frame.pts] = frame.duration
            self._write_encoded(self.stream.encode(image))
        for packet in sound:
            self._write_sound(packet)

    def finish(self) -> None:
        """Write what the encoders still hold and end the file."""
        self._write_encoded(self.stream.encode(None))
        if self.audio is not None and self.sound != "copied":
            self.container.mux(self.audio.encode(None))
        self.container.close()

    def _write_encoded(self, packets: list) -> None:
        for packet in packets:
            duration = self.durations.pop(packet.pts, 0)
            packet.duration = duration or packet.duration  # without it the last frame is shown for an average time
        self.container.mux(packets)

    def _begin(self, shape: tuple[int, ...]) -> None:
        import av

        source = self.reader.stream
        self.shape = shape[:2]
        self.converter = av.video.reformatter.VideoReformatter()
        self.stream = self.container.add_stream("libx264", rate=source.average_rate or 25, options=ENCODER)
        self.stream.width, self.stream.height = shape[1] + shape[1] % 2, shape[0] + shape[0] % 2
        self.stream.pix_fmt = "yuv420p"
        context, described = self.stream.codec_context, source.codec_context
        context.time_base = source.time_base
        ratio = source.sample_aspect_ratio or Fraction(1)  # of a pixel's width to its height
        turned = (described.width > described.height) != (shape[1] > shape[0])
        context.sample_aspect_ratio = 1 / ratio if turned else ratio
        # The matrix by which the source became RGB makes the way back, so that colours stay what they were.
        self.matrix = described.colorspace if described.colorspace in YUV_MATRICES else None
        if self.matrix == BT2020 and not hasattr(av.video.reformatter.Colorspace, "BT2020"):  # PyAV before 18
            self.matrix = BT709
        context.color_range = 1  # 16…235, as players expect
        if self.matrix is not None:
            context.colorspace = self.matrix
            context.color_primaries, context.color_trc = described.color_primaries, described.color_trc
        self._begin_sound()

    def _begin_sound(self) -> None:
        import av

        source = self.reader.audio
        if source is None:
            return
        name = source.codec_context.codec.canonical_name
        try:
            if name in COPIED_SOUND:
                self.audio, self.sound = self.container.add_stream_from_template(source), "copied"
            else:
                rate = source.rate if source.rate in AAC_RATES else 48000
                layout = {1: "mono", 6: "5.1"}.get(source.codec_context.channels, "stereo")
                self.audio = self.container.add_stream("aac", rate=rate, layout=layout)
                self.sound = f"encoded again as AAC (mp4 cannot hold {name})"
        except (av.FFmpegError, ValueError, AttributeError) as error:  # no decoder, or a description that is broken
            self.audio, self.sound = None, f"left out ({error})"

    def _write_sound(self, packet) -> None:
        import av

        if self.audio is None:
            return
        offset = round(self.reader.start / packet.time_base)
        if self.sound == "copied":
            if packet.size and packet.dts is not None:
                packet.pts = (packet.dts if packet.pts is None else packet.pts) - offset
                packet.dts = packet.dts - offset
                packet.stream = self.audio
                self.container.mux(packet)
            return
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            return  # a damaged packet: a moment of silence
        for frame in decoded:
            frame.pts = None if frame.pts is None else frame.pts - round(self.reader.start / frame.time_base)
            self.container.mux(self.audio.encode(frame))

    def _fitted(self, image: np.ndarray) -> np.ndarray:
        """The image at the size of the first one, and with even sides."""
        height, width = self.shape
        if image.shape[:2] != self.shape:  # some broadcasts change size on the way: black bars, no distortion
            scale = min(height / image.shape[0], width / image.shape[1])
            sides = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
            image = cv2.resize(image, sides, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
            down, right = height - image.shape[0], width - image.shape[1]
            image = cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_CONSTANT, value=(0, 0, 0))
        if height % 2 or width % 2:
            image = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        return image
