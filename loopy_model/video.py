"""Frames and waveform <-> video file, through PyAV."""

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor

AAC_RATE = 48_000  # Hz; AAC knows few rates, and this one everything plays


def write_video(
    path: Path,
    frames: Tensor,
    fps: Fraction,
    waveform: Tensor | None = None,
    sample_rate: int = AAC_RATE,
    metadata: dict[str, str] | None = None,
) -> None:
    """One H.264/AAC mp4. It appears under `path` only when it is complete.

    `frames` (F, H, W, C) 0..1: alpha is dropped, an odd size grows by one repeated row or column.
    `waveform` (channels, samples): any rate, more than two channels become one; cut where the
    video ends; an empty one means no sound. Raises ValueError for no frames or NaN in them.
    """
    if not len(frames):
        raise ValueError("there are no images to write; give at least one.")
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        with av.open(
            str(partial), "w", format="mp4", options={"movflags": "use_metadata_tags+faststart"}
        ) as file:
            file.metadata.update(metadata or {})
            _write(file, frames, fps, waveform, sample_rate)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(
    file: av.container.OutputContainer,
    frames: Tensor,
    fps: Fraction,
    waveform: Tensor | None,
    sample_rate: int,
) -> None:
    height, width = (side + side % 2 for side in frames.shape[1:3])
    video = file.add_stream("h264", rate=fps)
    video.width, video.height, video.pix_fmt = width, height, "yuv420p"
    video.options = {"crf": "16", "preset": "medium"}
    sound = _stereo_or_mono(waveform, sample_rate, Fraction(len(frames)) / fps)
    audio = None if sound is None else file.add_stream("aac", rate=AAC_RATE, layout=_layout(sound))
    for picture in frames:
        file.mux(video.encode(av.VideoFrame.from_ndarray(_rgb(picture), format="rgb24")))
    file.mux(video.encode(None))
    if audio is not None:
        for block in _resampled(sound, sample_rate):
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


def _stereo_or_mono(waveform: Tensor | None, sample_rate: int, seconds: Fraction) -> np.ndarray | None:
    """(channels, samples) float32, not longer than the video; None when there is no sound."""
    if waveform is None or waveform.numel() == 0:
        return None
    waveform = waveform[:, : round(seconds * sample_rate)].float().cpu()
    if len(waveform) > 2:
        waveform = waveform.mean(0, keepdim=True)
    return waveform.nan_to_num().clamp(-1, 1).contiguous().numpy()


def _layout(sound: np.ndarray) -> str:
    return "stereo" if len(sound) == 2 else "mono"


def _resampled(sound: np.ndarray, sample_rate: int) -> Iterable[av.AudioFrame]:
    frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout=_layout(sound))
    frame.sample_rate = sample_rate
    frame.pts = 0
    resampler = av.AudioResampler(format="fltp", layout=_layout(sound), rate=AAC_RATE)
    yield from resampler.resample(frame)
    yield from resampler.resample(None)


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
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        frames = [out.to_ndarray() for frame in file.decode(stream) for out in resampler.resample(frame)]
        return torch.from_numpy(np.concatenate(frames, 1)), stream.rate
