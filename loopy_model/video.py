"""Frames and waveform <-> video file, through PyAV."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

MOST_CHANNELS = 8  # of a sound; PyAV dies of more
AAC_RATE = 48_000  # Hz; AAC knows few rates, and this one everything plays


def write_video(
    path: Path,
    frames: Tensor | Iterable[Tensor],
    fps: Fraction,
    waveform: Tensor | Path | None = None,
    sample_rate: int = AAC_RATE,
    metadata: dict[str, str] | None = None,
) -> None:
    """One H.264/AAC mp4. It appears under `path` only when it is complete.

    `frames` (F, H, W, C) 0..1, whole or in parts that are made as they are written: alpha is dropped, an
    odd size grows by one repeated row or column. `waveform` (channels, samples), or a file with sound,
    which brings its own rate: more than two channels become one; cut where the video ends; an empty one
    means no sound. Raises ValueError for no frames or NaN in them.
    """
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    parts = iter([frames] if isinstance(frames, Tensor) else frames)
    first = next((part for part in parts if len(part)), None)
    if first is None:
        raise ValueError("there are no images to write; give at least one.")
    try:
        with av.open(
            str(partial), "w", format="mp4", options={"movflags": "use_metadata_tags+faststart"}
        ) as file:
            file.metadata.update(metadata or {})
            with _sound(waveform, sample_rate) as sound:
                _write(file, chain([first], parts), first.shape[1:3], fps, sound)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(
    file: av.container.OutputContainer,
    parts: Iterable[Tensor],
    size: torch.Size,
    fps: Fraction,
    sound: "Sound | None",
) -> None:
    video = file.add_stream("h264", rate=fps)
    video.height, video.width = (side + side % 2 for side in size)
    video.pix_fmt, video.options = "yuv420p", {"crf": "16", "preset": "medium"}
    audio = sound and file.add_stream("aac", rate=AAC_RATE, layout=sound.layout)
    count = 0
    for part in parts:
        for picture in part:
            file.mux(video.encode(av.VideoFrame.from_ndarray(_rgb(picture), format="rgb24")))
        count += len(part)
    file.mux(video.encode(None))
    if audio:
        for block in sound.resampled(count / fps, AAC_RATE):
            file.mux(audio.encode(block))
        file.mux(audio.encode(None))


def _rgb(picture: Tensor) -> np.ndarray:
    """(H, W, C) 0..1 -> (H', W', 3) uint8 with even sides."""
    picture = picture[..., : 3 if picture.shape[-1] >= 3 else 1].float().cpu()  # alpha is dropped
    if not torch.isfinite(picture).all():
        raise ValueError(
            "the images hold NaN or infinite values; check the node that made them "
            "(a model in half precision is the usual cause)."
        )
    height, width = picture.shape[:2]
    planes = picture.expand(-1, -1, 3).permute(2, 0, 1)[None]
    planes = nnf.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")[0]
    return (planes.permute(1, 2, 0).clamp(0, 1) * 255).round().byte().contiguous().numpy()


@dataclass(frozen=True)
class Sound:
    """A waveform that is read block by block: a long one need not be in memory as a whole."""

    rate: int
    channels: int
    blocks: Iterable[Tensor]  # (channels, samples)

    @property
    def layout(self) -> str:
        return "stereo" if self.channels == 2 else "mono"

    def resampled(self, seconds: Fraction, rate: int) -> Iterator[av.AudioFrame]:
        """The first `seconds` at another rate."""
        resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=rate)
        left, done = round(seconds * self.rate), 0
        for block in self.blocks:
            block = block[:, : left - done]
            if not block.shape[1]:
                break
            frame = av.AudioFrame.from_ndarray(_stereo_or_mono(block), format="fltp", layout=self.layout)
            frame.sample_rate, frame.pts, frame.time_base = self.rate, done, Fraction(1, self.rate)
            done += block.shape[1]
            yield from resampler.resample(frame)
        yield from resampler.resample(None)


def _stereo_or_mono(block: Tensor) -> np.ndarray:
    """(channels, samples) float32."""
    block = block.float().cpu()
    if len(block) > 2:
        block = block.mean(0, keepdim=True)
    return block.nan_to_num().clamp(-1, 1).contiguous().numpy()


@contextmanager
def _sound(source: Tensor | Path | None, rate: int) -> Iterator[Sound | None]:
    """None when there is no sound."""
    if isinstance(source, Path):
        with av.open(str(source)) as file:
            stream = next(iter(file.streams.audio), None)
            yield stream and Sound(stream.rate, stream.channels, _decoded(file, stream.layout.name))
    elif source is None or source.numel() == 0:
        yield None
    else:
        yield Sound(rate, len(source), source.split(rate, 1))


def _decoded(file: av.container.InputContainer, layout: str, rate: int | None = None) -> Iterator[Tensor]:
    """(channels, samples) float32, block by block, of the first sound track."""
    stream = file.streams.audio[0]
    if stream.channels > MOST_CHANNELS:
        raise ValueError(
            f"the sound has {stream.channels} channels, at most {MOST_CHANNELS} can be read; mix it down."
        )
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate or stream.rate)
    for frame in chain(file.decode(stream), [None]):
        for out in resampler.resample(frame):
            yield torch.from_numpy(out.to_ndarray())


def resampled(voice: Tensor, rate: int, wanted: int) -> Tensor:
    """A mono voice (samples,) at another rate; what is beyond 1 is cut."""
    sound = Sound(rate, 1, voice[None].split(rate, 1))
    frames = sound.resampled(Fraction(len(voice), rate), wanted)
    blocks = [torch.from_numpy(frame.to_ndarray())[0] for frame in frames]
    return torch.cat([voice[:0], *blocks])


def read_video(path: Path) -> tuple[Tensor, Fraction, Tensor | None, int]:
    """-> frames (F, H, W, 3) 0..1, fps, waveform (channels, samples) or None, sample rate."""
    with av.open(str(path)) as file:
        fps = file.streams.video[0].average_rate
        pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
    frames = torch.from_numpy(np.stack(pictures)).float() / 255
    waveform, rate = read_audio(path)
    return frames, fps, waveform, rate


def read_audio(path: Path) -> tuple[Tensor | None, int]:
    """-> waveform (channels, samples) float32 and its rate; (None, 0) when there is no sound."""
    with av.open(str(path)) as file:
        if not file.streams.audio:
            return None, 0
        stream = file.streams.audio[0]
        blocks = list(_decoded(file, stream.layout.name))
        return torch.cat(blocks, 1) if blocks else torch.empty(stream.channels, 0), stream.rate


def read_voice(path: Path, rate: int) -> Iterator[Tensor]:
    """Mono blocks (samples,) float32 at `rate`, none when there is no sound."""
    with av.open(str(path)) as file:
        if file.streams.audio:
            for block in _decoded(file, file.streams.audio[0].layout.name, rate):
                yield block.mean(0)
