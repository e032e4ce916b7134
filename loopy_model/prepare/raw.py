"""Raw video -> upright pictures 25 times a second, and its voice, on one clock.

The clock starts with the first picture. Picture k is what the video shows at k/25 s, sample n of
the voice is what it sounds like at n/16000 s, whatever rates and first time stamps the file has.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

import av
import numpy as np

from ..config import SAMPLE_RATE

FPS = 25  # of every clip (paper 3.5)
SAMPLES = SAMPLE_RATE // FPS  # per picture
SUFFIXES = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .ogv .ts .vob .webm .wmv".split()
)
POINTS_SUFFIX = ".points.safetensors"  # landmarks beside a video, see landmarks.py
BT709, UNSPECIFIED, BT601 = 1, 2, 5  # matrices of colour, ITU-T H.273; players guess by the size
HD = 720  # rows
HALF = Fraction(1, 2 * FPS)
LONGEST_STILL = 600  # s; a longer one is a broken clock, not a picture that stood
BACKWARDS = 1  # s; less than this may be rounding, more is a broken clock
SEEK_GAP = 5 * FPS  # pictures; a shorter gap is decoded through
Picture = TypeVar("Picture")


class Unreadable(Exception):
    """One sentence on why a raw video cannot be used."""


class NoAccess(Unreadable):
    """The same, where only a permission is missing."""


def raw_videos(folder: Path, leave_out: Path) -> tuple[list[str], list[str]]:
    """Relative paths below `folder`, sorted: of all videos, and of the files that are passed over.

    Those are the hidden ones, all that are no videos, names that are not UTF-8, which no record could hold, and
    folders that cannot be listed; hidden folders, the folder `leave_out` and files of landmarks are not looked
    at. Links to folders elsewhere are followed, once each; what lies below `folder` is found where it lies.
    """
    videos, others, ours, seen = [], [], (folder.resolve(), leave_out.resolve()), {leave_out.resolve()}

    def pass_over(error: OSError) -> None:
        others.append(Path(error.filename).relative_to(folder).as_posix())

    def is_new(below: Path) -> bool:
        place = below.resolve()
        if below.name[0] == "." or place in seen:
            return False
        if below.is_symlink() and any(place.is_relative_to(own) for own in ours):
            return False
        seen.add(place)
        return True

    for here, folders, names in os.walk(folder, onerror=pass_over, followlinks=True):
        folders[:] = [name for name in sorted(folders) if is_new(Path(here) / name)]
        for name in names:
            if not name.endswith(POINTS_SUFFIX):
                path = (Path(here) / name).relative_to(folder).as_posix()
                is_video = name[0] != "." and Path(name).suffix.lower() in SUFFIXES and _is_utf8(path)
                (videos if is_video else others).append(path)
    return sorted(videos), sorted(others)


def _is_utf8(path: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in path)


def at_25_fps(timed: Iterable[tuple[Fraction, Picture]], first: int = 0) -> Iterator[tuple[int, Picture]]:
    """Pictures with the times at which they appear -> (k, the picture to show at k/25 s), k >= first.

    The nearest of the pictures that have appeared half a frame later: a still one stands however
    long it stands, and time stamps that are rounded do not double or lose one. The last entry of
    `timed` gives the end; its picture is not shown.
    """
    index, held = first, None
    for time, picture in timed:
        if held is not None:
            if time <= held[0]:
                continue
            change = max((held[0] + time) / 2, time - HALF)
            while Fraction(index, FPS) < change:
                yield index, held[1]
                index += 1
        held = time, picture


def display_size(frame: av.VideoFrame, aspect: Fraction | None) -> tuple[int, int]:
    """(width, height) in square pixels, before turning. `aspect`: width of a pixel / its height."""
    return max(1, round(frame.width * (aspect or 1))), frame.height


def upright(frame: av.VideoFrame, size: tuple[int, int], longest: int | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB as a player shows it: alpha dropped, square pixels, turned.

    `size` (width, height) before turning; `longest`: limit of the longer side.
    """
    shrink = min(1.0, (longest or max(size)) / max(size))
    width, height = (max(1, round(side * shrink)) for side in size)
    if frame.colorspace == UNSPECIFIED:
        frame.colorspace = BT709 if frame.height >= HD else BT601
    picture = frame.to_ndarray(format="rgb24", width=width, height=height)
    return np.ascontiguousarray(np.rot90(picture, round(frame.rotation / 90)))


class RawVideo:
    """An open raw video. Use as a context manager; every failure of reading is `Unreadable`."""

    def __init__(
        self, path: Path, origin: Fraction | None = None, size: tuple[int, int] | None = None
    ) -> None:
        """`origin` (s) and `size` (width, height before turning): of an earlier look at the file."""
        self.path, self.origin, self.size = path, origin, size
        self._open()

    def _open(self) -> None:
        with _explained("cannot be opened"):
            self.file = _opened(self.path)
        self.picture = self.file.streams.best("video")
        self.sound = self.file.streams.best("audio")
        if self.picture is None:
            self.file.close()
            raise Unreadable("it has no picture.")
        self.picture.thread_type = "AUTO"

    def __enter__(self) -> "RawVideo":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @property
    def promised_seconds(self) -> float | None:
        """How long the header says that the picture lasts."""
        promised = self.picture.duration
        if promised is None or self.promised_seconds_of_all is None:
            return None
        return min(float(promised * self.picture.time_base), self.promised_seconds_of_all)

    @property
    def promised_seconds_of_all(self) -> float | None:
        """How long the header says that the longest stream lasts. None: not to be relied on."""
        exact = {"mp4", "matroska"} & set(self.file.format.name.split(","))
        return self.file.duration / av.time_base if exact and self.file.duration else None

    def play(self, voice: "Voice | None" = None) -> Iterator[tuple[int, av.VideoFrame]]:
        """All pictures from the first on; the sound that passes by goes to `voice`."""
        yield from at_25_fps(self._on_our_clock(self._decoded(voice)))

    def replay(self, ranges: Iterable[range]) -> Iterator[tuple[int, av.VideoFrame]]:
        """The pictures of ascending `ranges` of frame numbers, decoding little else."""
        pictures, position, seeking = self.play(), 0, True
        for wanted in ranges:
            if seeking and wanted.start - position > SEEK_GAP:
                reached = self._seek(wanted.start)
                seeking = reached >= position  # key frames are far apart: decoding through is faster
                pictures = at_25_fps(self._on_our_clock(self._decoded(None)), reached)
            for index, frame in pictures:
                position = index
                if index in wanted:
                    yield index, frame
                if index + 1 >= wanted.stop:
                    break

    def _seek(self, index: int) -> int:
        """Go to a key frame before picture `index` -> the first picture that can be given from there."""
        for seconds in (1, 10):  # some containers land a little late
            target = int((self.origin + Fraction(index, FPS) - seconds) / self.picture.time_base)
            with _explained("cannot be searched"):
                self.file.seek(target, stream=self.picture)
                first = next(self._decoded(None), None)
                self.file.seek(target, stream=self.picture)
            if first is not None and first.pts is not None:
                reached = int(self._time(first, None) * FPS) + 1
                if reached <= index:
                    return max(0, reached)
        self.file.close()
        self._open()
        return 0

    def _on_our_clock(
        self, frames: Iterable[av.VideoFrame]
    ) -> Iterator[tuple[Fraction, av.VideoFrame | None]]:
        """-> (seconds after the first picture, picture), and at last (end, None)."""
        time, frame = None, None
        for frame in frames:
            if self.origin is None:
                self._begin(frame)
            before, time = time, self._time(frame, time)
            if before is not None and not -BACKWARDS < time - before < LONGEST_STILL:
                raise Unreadable(f"its clock jumps from {float(before):.2f} s to {float(time):.2f} s.")
            self.size = self.size or display_size(frame, self.picture.sample_aspect_ratio)
            yield time, frame
        if frame is not None:
            yield time + self._shown(frame), None

    def _begin(self, frame: av.VideoFrame) -> None:
        self.origin = Fraction(0) if frame.pts is None else frame.pts * frame.time_base

    def _time(self, frame: av.VideoFrame, before: Fraction | None) -> Fraction:
        if frame.pts is not None:
            return frame.pts * frame.time_base - self.origin
        return Fraction(0) if before is None else before + self._shown(frame)

    def _shown(self, frame: av.VideoFrame) -> Fraction:
        """Seconds that a picture stays, as far as the file says."""
        if frame.duration:
            return frame.duration * frame.time_base
        return 1 / (self.picture.average_rate or Fraction(FPS))

    def _decoded(self, voice: "Voice | None") -> Iterator[av.VideoFrame]:
        """Pictures in order of display. Broken sound is left out; a broken picture ends it all."""
        streams = [self.picture] + ([self.sound] if voice is not None and self.sound else [])
        begun, packets = False, self.file.demux(streams)
        while True:
            with _explained("breaks off"):
                packet = next(packets, None)
            if packet is None:
                return
            if packet.stream is self.sound:
                _listen(packet, voice)
                continue
            try:
                frames = packet.decode()
            except av.FFmpegError as error:
                if begun:
                    raise Unreadable(f"its picture cannot be decoded: {_words(error)}.") from error
                continue  # a recording that starts between two key frames
            begun = begun or bool(frames)
            yield from frames


def _listen(packet: av.Packet, voice: "Voice") -> None:
    try:
        for block in packet.decode():
            voice.hear(block)
    except av.FFmpegError:
        pass  # the missing block becomes silence at its place


def _opened(path: Path) -> "av.container.InputContainer":
    if path.is_symlink() and not path.exists():
        raise Unreadable(f"it is a link to {os.readlink(path)}, which does not exist.")
    if path.stat().st_size == 0:
        raise Unreadable("it is empty (0 bytes).")
    try:
        # Names and texts in the file may be in any encoding; they do not matter here.
        return av.open(str(path), metadata_errors="replace")
    except av.InvalidDataError as error:
        raise Unreadable(f"it is no video, or its beginning or end is missing ({_words(error)}).") from error


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        raise NoAccess(f"it {what}: {_words(error)}.") from error
    except (av.FFmpegError, OSError, UnicodeError, ValueError) as error:
        raise Unreadable(f"it {what}: {_words(error)}.") from error


def _words(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


class Voice:
    """Collects a sound track of any kind as 16 kHz mono, int16: 115 MB per hour.

    Blocks that follow each other are resampled as one run; a gap, an overlap or a drift of the
    clock starts the next run at its own time.
    """

    TOLERANCE = Fraction(1, 2 * FPS)  # between where a run should be and where a block says it is

    def __init__(self) -> None:
        self.runs: list[tuple[Fraction, bytearray]] = []  # when it begins, int16 samples
        self._resampler: av.AudioResampler | None = None
        self._expected: Fraction | None = None
        self._kind: tuple[str, str, int] | None = None

    @property
    def end(self) -> Fraction:
        """s, on the file's clock."""
        return self._expected or Fraction(0)

    def hear(self, block: av.AudioFrame) -> None:
        time = self._expected if block.pts is None else block.pts * block.time_base
        time = Fraction(0) if time is None else time
        kind = block.format.name, block.layout.name, block.sample_rate
        if self._expected is None or kind != self._kind or abs(time - self._expected) > self.TOLERANCE:
            self._flush()
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self.runs.append((time, bytearray()))
            self._kind, self._expected = kind, time
        self._expected += Fraction(block.samples, block.sample_rate)
        block.pts = None  # the run's own clock
        self._take(block)

    def _take(self, block: av.AudioFrame | None) -> None:
        for out in self._resampler.resample(block):
            self.runs[-1][1].extend(out.to_ndarray().tobytes())

    def _flush(self) -> None:
        if self._resampler is not None:
            self._take(None)
            self._resampler = None

    def waveform(self, origin: Fraction, frames: int) -> np.ndarray | None:
        """(frames * 640,) int16 from the first picture on; silence where there is no sound.

        None: the video has no sound at all.
        """
        self._flush()
        if not self.runs:
            return None
        result = np.zeros(frames * SAMPLES, np.int16)
        for time, run in self.runs:
            start = round((time - origin) * SAMPLE_RATE)
            samples = np.frombuffer(run, np.int16)[max(0, -start) :]
            place = result[max(0, start) :][: len(samples)]
            place[:] = samples[: len(place)]
        return result
