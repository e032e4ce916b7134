"""Held-out faces, voices and text, and what the face meter reads from videos of them."""

from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import torch
from einops import rearrange, reduce
from safetensors.torch import load_file
from torch import Tensor

from ..movement import exp, glo
from ..portrait import square_portrait
from ..puppet.clips import SPLITS, Clip, draw_clip, draw_frames
from ..puppet.faces import landmarks
from ..puppet.meter import FaceMeter
from ..puppet.motion import MOTION
from ..puppet.samples import neutral_portrait

METER = Path(__file__).parents[2] / "assets" / "face_meter.safetensors"
FIRST_SEED = SPLITS["test"].first_seed + 1000  # clips that no preparation or validation has used


@dataclass(frozen=True)
class HeldOut:
    """A face, a voice and what the mouth must do."""

    seed: int
    identity: np.ndarray  # (K,)
    portrait: Tensor  # (512, 512, 3) 0..1, neutral
    frames: Tensor  # (F, S, S, 3) 0..1, the drawn truth
    waveform: Tensor  # (1, samples) at 16 kHz
    motion: Tensor  # (F, 8) truth, in the order of MOTION


@cache
def talking_seed(number: int, frames: int) -> int:
    """Seed of the `number`-th held-out clip, without the silent ones, which have no rhythm to follow."""
    first = talking_seed(number - 1, frames) + 1 if number else FIRST_SEED
    return next(seed for seed in count(first) if _draw(seed, frames).motion[:, MOTION.index("open")].any())


def _draw(seed: int, frames: int) -> Clip:
    return draw_clip(seed, frames, SPLITS["test"].voices)


def held_out(number: int, frames: int, size: int, drawn: int | None = None) -> HeldOut:
    """The `number`-th talking clip; of its frames only the first `drawn` are drawn, if that is given."""
    seed = talking_seed(number, frames)
    clip = _draw(seed, frames)
    pictures = draw_frames(clip.identity, clip.motion[:drawn], size)
    return HeldOut(
        seed=seed,
        identity=clip.identity,
        portrait=torch.from_numpy(neutral_portrait(seed)).float() / 255,
        frames=rearrange(pictures, "f c h w -> f h w c").float() / 255,
        waveform=torch.from_numpy(clip.waveform)[None],
        motion=torch.from_numpy(clip.motion),
    )


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


def flat_noise(frames: Tensor) -> float:
    """Mean absolute deviation (0..1) of the two upper corners, which show nothing but wall, from a
    plane of colour."""
    side = frames.shape[1] // 8
    corners = torch.cat([frames[:, :side, :side], frames[:, :side, -side:]])
    axis = torch.linspace(-1, 1, side)
    plane = torch.stack([torch.ones(side, side), *torch.meshgrid(axis, axis, indexing="ij")]).flatten(1)
    basis = plane / plane.norm(dim=1, keepdim=True)  # (3, side * side), orthonormal
    pixels = rearrange(corners, "n h w c -> n c (h w)")
    return float((pixels - pixels @ basis.T @ basis).abs().mean())


def movement_of(identity: np.ndarray, motion: Tensor, clip: int) -> tuple[float, float]:
    """Mean Glo and Exp (eq. 3-5) of the clips of `clip` frames, from poses (F, 8) as the meter reads
    them: the landmarks of that face in these poses."""
    whole = len(motion) // clip * clip
    person = torch.from_numpy(identity)[None].expand(whole, -1)
    points = rearrange(landmarks(person, motion[:whole]), "(n f) p xy -> n f p xy", f=clip)
    return float(glo(points).mean()), float(exp(points).mean())


def contact_sheet(videos: list[tuple[Tensor, Tensor, Tensor]], every: int = 4, columns: int = 12) -> Tensor:
    """(portrait, generated, truth) per face -> (H, W, 3): a row of the portrait and generated frames,
    and a row of the truth."""
    rows = []
    for portrait, generated, truth in videos:
        still = square_portrait(portrait, generated.shape[1])
        for frames in (generated, truth):
            rows.append(torch.cat([still, *frames[::every][:columns]], 1))
    return torch.cat(rows)
