"""Pictures and sounds to feed a host with, and a look into the videos that come out."""

import math
import wave
from array import array
from dataclasses import dataclass
from pathlib import Path

import av
from PIL import Image


def write_tone(path: Path, seconds: float, rate: int = 16_000, channels: int = 1) -> None:
    """A 220 Hz tone as 16-bit PCM."""
    turn = 2 * math.pi * 220 / rate  # radians per sample
    tone = [round(8000 * math.sin(turn * i)) for i in range(round(seconds * rate))]
    samples = array("h", (value for value in tone for _ in range(channels)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.tobytes())


def write_picture(path: Path, width: int, height: int) -> None:
    """A colour gradient, so that up and down, left and right differ."""
    picture = Image.new("RGB", (width, height))
    places = ((x, y) for y in range(height) for x in range(width))
    picture.putdata([(255 * x // width, 255 * y // height, 128) for x, y in places])
    picture.save(path)


@dataclass(frozen=True)
class Video:
    """What a player sees of a file."""

    codec: str
    frames: int
    fps: float
    size: tuple[int, int]  # width, height
    seconds: float
    audio_codec: str | None
    audio_seconds: float
    metadata: dict[str, str]


def read_video(path: Path) -> Video:
    """Decode every frame, as a player would; fails on an incomplete file."""
    with av.open(str(path)) as file:
        video = file.streams.video[0]
        audio = file.streams.audio[0] if file.streams.audio else None
        return Video(
            codec=video.codec_context.name,
            frames=sum(1 for _ in file.decode(video)),
            fps=float(video.average_rate),
            size=(video.width, video.height),
            seconds=float(video.duration * video.time_base),
            audio_codec=audio.codec_context.name if audio else None,
            audio_seconds=float(audio.duration * audio.time_base) if audio else 0.0,
            metadata=dict(file.metadata),
        )


def sound_seconds(path: Path) -> float:
    """Length of a sound file, from its samples."""
    with av.open(str(path)) as file:
        return sum(frame.samples / frame.sample_rate for frame in file.decode(audio=0))
