"""`python -m loopy_model.puppet.videos FOLDER`: puppet clips as raw videos, as a camera gives them.

A 16:9 picture with the face off its middle, a voice of usual loudness, H.264 and AAC, and beside each
`NAME.mp4` the exact points in `NAME.points.safetensors`. `python -m loopy_model.prepare` makes training clips
of such a folder.
"""

import argparse
import os
import random
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from ..config import SAMPLE_RATE
from ..video import write_video
from .clips import SPLITS, Clip, draw_clip, draw_frames
from .faces import landmarks
from .speech import FPS

LOUDNESS = 0.1  # root mean square of the voice, full scale is 1: -20 dBFS
PEAK = 0.95  # of the voice, at most
HEADROOM = 0.25  # wall above the drawn square, share of its side
GRAIN = 0.005  # standard deviation of the noise, 0..1: 95 KB per second at 256 pixels (the filter asks 75)


class Border(NamedTuple):
    """The wall around the drawn square, in pixels; below it there is none."""

    left: int
    right: int
    top: int

    @classmethod
    def draw(cls, rng: random.Random, size: int) -> "Border":
        """A 16:9 picture of even sides with the square of `size` anywhere along its lower edge."""
        height = round((1 + HEADROOM) * size / 2) * 2
        width = round(height * 8 / 9) * 2
        left = rng.randint(0, width - size)
        return cls(left, width - size - left, height - size)


def write_raw_video(path: Path, seed: int, voices: tuple[str, ...], seconds: float, size: int) -> None:
    """The clip of `seed`, its face drawn `size` pixels square; the points are written first, so that a
    video is never without them."""
    clip = draw_clip(seed, round(seconds * FPS), voices, silent_share=0)
    border = Border.draw(random.Random(f"wall {seed}"), size)
    points = path.with_suffix(".points.safetensors")
    partial = points.with_suffix(".partial")
    save_file({"points": raw_points(clip, size, border)}, partial)
    partial.chmod(0o644)  # safetensors writes files that only their owner can read
    os.replace(partial, points)
    frames = raw_frames(clip, size, border, torch.Generator().manual_seed(seed))
    voice = torch.from_numpy(usually_loud(clip.waveform))[None]
    write_video(path, frames, Fraction(FPS), voice, SAMPLE_RATE)


def usually_loud(waveform: np.ndarray) -> np.ndarray:
    """(samples,) at LOUDNESS; a little below where its peaks ask for it."""
    rms = float(np.sqrt(np.square(waveform).mean()))
    return waveform * min(LOUDNESS / rms, PEAK / float(np.abs(waveform).max()))


def raw_frames(clip: Clip, size: int, border: Border, generator: torch.Generator) -> Tensor:
    """The drawn square, its wall continued over the border, and grain: (F, H, W, 3) float16, 0..1."""
    square = draw_frames(clip.identity, clip.motion, size).half() / 255
    frames = nnf.pad(square, (*border, 0), mode="replicate").permute(0, 2, 3, 1)
    for frame in frames:
        frame += GRAIN * torch.randn(*frame.shape[:2], 1, generator=generator)
    return frames


def raw_points(clip: Clip, size: int, border: Border) -> Tensor:
    """(F, 68, 2) float32, 0..1 of the whole picture."""
    motion = torch.from_numpy(clip.motion)
    square = landmarks(torch.from_numpy(clip.identity).expand(len(motion), -1), motion)
    width, height = border.left + size + border.right, border.top + size
    return (square * size + torch.tensor([border.left, border.top])) / torch.tensor([width, height])


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loopy_model.puppet.videos", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the videos go; those that are there stay")
    parser.add_argument("--count", type=int, default=100, help="how many (100)")
    parser.add_argument("--seconds", type=float, default=6.0, help="length of each (6)")
    parser.add_argument("--size", type=int, default=256, help="pixels of the drawn square's side (256)")
    parser.add_argument(
        "--split", choices=SPLITS, default="train", help="test: faces and voices that train never has"
    )
    return parser


def main() -> None:
    options = build_parser().parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    split = SPLITS[options.split]
    for seed in tqdm(split.seeds(options.count), "raw videos"):
        path = options.folder / f"puppet_{seed:07d}.mp4"
        if not path.exists():
            write_raw_video(path, seed, split.voices, options.seconds, options.size)


if __name__ == "__main__":
    main()
