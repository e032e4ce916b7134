"""Videos of drawn faces without a speech synthesizer, their exact points, and networks that count."""

import random
from fractions import Fraction
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from loopy_model.puppet.clips import draw_frames
from loopy_model.puppet.faces import landmarks
from loopy_model.puppet.identity import draw_identity
from loopy_model.puppet.motion import HEAD_X, MOTION, OPEN
from loopy_model.video import write_video

SIZE, FRAMES, RATE = 64, 20, 16000


def motion(frames: int, sway: float, seed: int = 0) -> Tensor:
    """(F, 8): the head goes from side to side, the mouth opens and closes."""
    time = torch.arange(frames) / 25
    moves = torch.zeros(frames, len(MOTION))
    moves[:, HEAD_X] = sway * torch.sin(2 * torch.pi * time + seed)
    moves[:, OPEN] = 0.5 + 0.5 * torch.sin(12 * torch.pi * time)
    return moves


def draw(path: Path, seed: int, sway: float = 0.1, frames: int = FRAMES, fps: int = 25) -> Tensor:
    """An mp4 with a tone, and its points beside it -> the points (F, 68, 2), 0..1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    moves, identity = motion(frames, sway, seed), draw_identity(random.Random(seed))
    pictures = draw_frames(identity, moves.numpy(), SIZE).permute(0, 2, 3, 1) / 255
    tone = 0.3 * torch.sin(440 * 2 * torch.pi * torch.arange(frames * RATE // fps) / RATE)
    write_video(path, pictures, Fraction(fps), tone[None], RATE)
    points = landmarks(torch.as_tensor(identity).expand(frames, -1), moves)
    save_file({"points": points.contiguous()}, path.with_suffix(".points.safetensors"))
    return points


def folders(root: Path, sways: tuple[float, ...] = (0.1, 0.2)) -> tuple[Path, Path]:
    """Two folders with as many pairs: the real heads move by 0.1."""
    for index, sway in enumerate(sways):
        draw(root / "generated" / f"face_{index}.mp4", index, sway)
        draw(root / "real" / f"face_{index}.mp4", index, 0.1)
    return root / "generated", root / "real"


class Mean(nn.Module):
    """Stands for a network of features: mean colour and its spread, (B, 3, ..) -> (B, 6)."""

    def forward(self, batch: Tensor) -> Tensor:
        flat = batch.float().flatten(2)
        return torch.cat([flat.mean(2), flat.std(2)], 1)


class Middle(nn.Module):
    """Stands for AMT: the mean of both neighbours."""

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return (before + after) / 2


class Brightness(nn.Module):
    """Stands for Q-Align: (B, 3, 448, 448) -> (B,)"""

    def forward(self, batch: Tensor) -> Tensor:
        return batch.mean(dim=[1, 2, 3])


class Face(nn.Module):
    """Stands for Deep3DFaceRecon: 257 numbers, of which 80-143 are the expression."""

    def forward(self, batch: Tensor) -> Tensor:
        return batch.mean(dim=[1, 2, 3])[:, None] * torch.arange(257)


def script(module: nn.Module, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.jit.script(module).save(str(path))
    return path
