"""Lip sync and identity of the puppet on held-out faces, voices and text.

Mouth opening in the generated frames is read by the face meter and correlated, per video, with the
drawn truth of the voice. Two yardsticks come from the same meter: the ground truth after the VAE
(the ceiling), and the generated videos against another voice's truth (the floor).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from safetensors.torch import load_file
from torch import Tensor

from ..config import SAMPLE_RATE
from ..pipeline import Pipeline
from ..puppet.clips import SPLITS, Clip, draw_clip, draw_frames
from ..puppet.meter import FaceMeter
from ..puppet.motion import MOTION
from ..puppet.samples import neutral_portrait
from ..sampling import Guidance

METER = Path(__file__).parents[2] / "assets" / "face_meter.safetensors"
FIRST_SEED = SPLITS["test"].first_seed + 1000  # clips that no preparation or validation has used


@dataclass(frozen=True)
class HeldOut:
    """A face, a voice and what the mouth must do."""

    seed: int
    portrait: Tensor  # (512, 512, 3) 0..1, neutral
    frames: Tensor  # (F, S, S, 3) 0..1, the drawn truth
    waveform: Tensor  # (1, samples) at 16 kHz
    motion: Tensor  # (F, 8) truth, in the order of MOTION


@dataclass(frozen=True)
class Video:
    truth: HeldOut
    generated: Tensor  # (F, S, S, 3) 0..1
    ceiling: Tensor  # (F, S, S, 3) the truth after the VAE


def talking_clips(frames: int) -> Iterator[tuple[int, Clip]]:
    """Held-out clips in the order of their seeds, without the silent ones, which have no rhythm to follow."""
    for seed in count(FIRST_SEED):
        clip = draw_clip(seed, frames, SPLITS["test"].voices)
        if clip.motion[:, MOTION.index("open")].any():
            yield seed, clip


def held_out(number: int, frames: int, size: int) -> HeldOut:
    """The `number`-th talking clip."""
    seed, clip = next(islice(talking_clips(frames), number, None))
    drawn = torch.from_numpy(np.asarray(draw_frames(clip.identity, clip.motion, size)))
    return HeldOut(
        seed=seed,
        portrait=torch.from_numpy(neutral_portrait(seed)).float() / 255,
        frames=rearrange(drawn, "f c h w -> f h w c").float() / 255,
        waveform=torch.from_numpy(clip.waveform)[None],
        motion=torch.from_numpy(clip.motion),
    )


def videos(pipeline: Pipeline, faces: int, seconds: float, guidance: Guidance, steps: int) -> Iterator[Video]:
    frames = round(seconds * pipeline.config.clip.fps)
    for number in range(faces):
        truth = held_out(number, frames, pipeline.config.image_size)
        generated = pipeline(truth.portrait, truth.waveform, SAMPLE_RATE, guidance, steps, seed=number)
        with torch.inference_mode():
            ceiling = pipeline.decode(pipeline.encode(truth.frames))
        yield Video(truth, generated, ceiling)


def load_meter(path: Path = METER) -> FaceMeter:
    meter = FaceMeter()
    meter.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return meter.eval()


@torch.inference_mode()
def measure(meter: FaceMeter, frames: Tensor) -> Tensor:
    """(F, H, W, 3) 0..1 -> motion (F, 8)."""
    return meter(rearrange(frames, "f h w c -> f c h w"))


def correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.numpy(), b.numpy())[0, 1])


def identity_error(frames: Tensor, portrait: Tensor, cells: int = 8) -> float:
    """Mean absolute colour difference (0..1) between the video's time average and the portrait, on
    `cells` x `cells` mean colours: hair, skin, clothes and background, little of the movement."""
    video = reduce(frames.mean(0), "(a h) (b w) c -> a b c", "mean", a=cells, b=cells)
    still = reduce(portrait, "(a h) (b w) c -> a b c", "mean", a=cells, b=cells)
    return float((video - still).abs().mean())


def report(made: list[Video], meter: FaceMeter) -> dict[str, dict[str, float]]:
    """Rows generated, ceiling, floor; columns lip sync of opening and width, identity error."""
    read = [measure(meter, video.generated) for video in made]
    best = [measure(meter, video.ceiling) for video in made]
    truth = [video.truth.motion for video in made]
    shifted = truth[1:] + truth[:1]
    portraits = [video.truth.portrait for video in made]
    return {
        "generated": _row(read, truth, [v.generated for v in made], portraits),
        "ceiling": _row(best, truth, [v.ceiling for v in made], portraits),
        "floor": _row(read, shifted, [v.generated for v in made], portraits[1:] + portraits[:1]),
    }


def _row(
    read: list[Tensor], truth: list[Tensor], frames: list[Tensor], portraits: list[Tensor]
) -> dict[str, float]:
    row = {}
    for name in ("open", "width"):
        column = MOTION.index(name)
        values = [correlation(r[:, column], t[:, column]) for r, t in zip(read, truth)]
        row[f"lip_sync_{name}"], row[f"lowest_{name}"] = float(np.mean(values)), min(values)
    row["identity_error"] = float(np.mean([identity_error(f, p) for f, p in zip(frames, portraits)]))
    return row


def contact_sheet(made: list[Video], every: int = 4, columns: int = 12) -> Tensor:
    """(H, W, 3): per face a row of the portrait and generated frames, and a row of the truth."""
    rows = []
    for video in made:
        size = video.generated.shape[1]
        still = torch.nn.functional.interpolate(
            rearrange(video.truth.portrait, "h w c -> 1 c h w"),
            size=(size, size),
            mode="bicubic",
            antialias=True,
        )
        still = rearrange(still, "1 c h w -> h w c").clamp(0, 1)
        for frames in (video.generated, video.truth.frames):
            rows.append(torch.cat([still, *frames[::every][:columns]], 1))
    return torch.cat(rows)
