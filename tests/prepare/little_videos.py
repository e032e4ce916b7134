"""Small real video files for the tests of the pipeline, and faces whose points are known."""

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from safetensors.numpy import save_file

from loopy_model.prepare.pose import HEAD, RIGID

WIDTH, HEIGHT = 160, 120
TICKS = 90_000  # per second, of uneven times
RATE = 48_000


def grey(level: float, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    return np.full((height, width, 3), level, np.uint8)


BITS = 10


def numbered(index: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture that says which it is: black and white columns, a bit each."""
    bits = index >> np.arange(BITS) & 1
    column = np.repeat(np.where(bits, 220, 30), width // BITS)
    row = np.pad(column, (0, width - len(column)), mode="edge")
    return np.broadcast_to(row[None, :, None], (height, width, 3)).astype(np.uint8)


def number(picture: np.ndarray) -> int:
    """The index that `numbered` drew."""
    width = picture.shape[1] // BITS
    columns = picture[:, : width * BITS].reshape(len(picture), BITS, width, -1).mean((0, 2, 3))
    return int(((columns > 125) << np.arange(BITS)).sum())


def scene(seed: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """A picture of large coloured squares."""
    squares = np.random.default_rng(seed).integers(0, 255, (6, 8, 3))
    return np.kron(squares, np.ones((-(-height // 6), -(-width // 8), 1)))[:height, :width].astype(np.uint8)


def tone(seconds: float, level: float = 0.3) -> np.ndarray:
    """(samples,) float32 at 48 kHz"""
    return (level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def write(
    path: Path,
    pictures: Iterable[np.ndarray],
    times: Iterable[float] | None = None,
    sound: np.ndarray | None = None,
    sound_starts: float = 0.0,
    codec: str = "h264",
    sound_codec: str = "aac",
    pix_fmt: str = "yuv420p",
    **options: str,
) -> None:
    """`times` (s) of the pictures, 25 fps where not given; `sound` (samples,) float32 at 48 kHz."""
    pictures, ticks = list(pictures), 25 if times is None else TICKS
    times = [i / 25 for i in range(len(pictures))] if times is None else times
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        video = file.add_stream(codec, rate=25)
        video.height, video.width = pictures[0].shape[:2]
        video.pix_fmt = pix_fmt
        video.options = {"preset": "veryfast", "crf": "12"} | options if codec == "h264" else options
        video.codec_context.time_base = Fraction(1, ticks)
        voice = None if sound is None else file.add_stream(sound_codec, rate=RATE, layout="mono")
        for time, picture in zip(times, pictures, strict=True):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = round(time * ticks), Fraction(1, ticks)
            file.mux(video.encode(frame))
        file.mux(video.encode(None))
        if voice is not None:
            kind = voice.codec_context.format.name
            block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
            block.sample_rate, block.pts = RATE, round(sound_starts * RATE)
            block.time_base = Fraction(1, RATE)
            for part in av.AudioResampler(format=kind, layout="mono", rate=RATE).resample(block):
                part.pts, part.time_base = round(sound_starts * RATE), Fraction(1, RATE)
                file.mux(voice.encode(part))
            file.mux(voice.encode(None))


def turn(path: Path) -> None:
    """Mark an mp4 as to be shown turned by 90 degrees clockwise, as phones do it (tkhd's matrix)."""
    content = path.read_bytes()
    upright = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    turned = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    head, track, tail = content.partition(b"tkhd")
    path.write_bytes(head + track + tail.replace(upright, turned, 1))


def face(x: float, y: float, width: float) -> np.ndarray:
    """(68, 2) float32: a face that looks at the camera, centred on (x, y), `width` pixels wide."""
    points = np.zeros((68, 2))
    points[RIGID] = HEAD[:, :2]
    turn = np.linspace(np.pi, 0, 17)
    points[:17] = np.stack([70 * np.cos(turn), 110 * np.sin(turn) - 10], 1)
    points[17:22] = np.stack([np.linspace(-50, -12, 5), np.full(5, -20)], 1)
    points[22:27] = -points[17:22] * [1, -1]
    points[48:] = [0, 75]
    points -= (points.min(0) + points.max(0)) / 2
    return (points * width / np.ptp(points[:, 0]) + [x, y]).astype(np.float32)


def faces(frames: int, x: float = 80, y: float = 60, width: float = 70) -> np.ndarray:
    """(F, 68, 2) pixels of one that does not move."""
    return np.repeat(face(x, y, width)[None], frames, 0)


def save_points(video: Path, points: np.ndarray, width: int = WIDTH, height: int = HEIGHT) -> None:
    """Pixels (F, 68, 2) or (F, faces, 68, 2) -> the file that the detector `points` reads."""
    relative = (points / [width, height]).astype(np.float32)
    save_file({"points": relative}, video.with_suffix(".points.safetensors"))


def talk(path: Path, seconds: float = 2.4, seed: int = 0, **options) -> None:
    """A raw video that passes every filter but the file size: a still face, with a voice."""
    frames = round(seconds * 25)
    write(path, [scene(seed)] * frames, sound=tone(seconds), **options)
    save_points(path, faces(frames))
