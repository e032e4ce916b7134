"""Does a long video stay what it was? Mean, contrast and sharpness of its pictures, clip by clip."""

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

STATISTICS = ("mean", "contrast", "sharpness")


def clip_statistics(frames: Tensor, clip: int) -> dict[str, np.ndarray]:
    """Frames (F, H, W, 3) 0..1 -> per clip of `clip` frames (a shorter last one is left out): mean
    value, contrast (standard deviation within a frame) and sharpness (mean size of the luminance
    steps between neighbouring pixels)."""
    whole = len(frames) // clip * clip
    grey = frames[:whole].mean(-1)
    steps = grey.diff(dim=-1).abs().mean((1, 2)) + grey.diff(dim=-2).abs().mean((1, 2))
    values = (frames[:whole].mean((1, 2, 3)), frames[:whole].flatten(1).std(1), steps)
    return {
        name: rearrange(value, "(n f) -> n f", f=clip).mean(1).numpy()
        for name, value in zip(STATISTICS, values, strict=True)
    }


def stretches(values: np.ndarray, clips: int) -> np.ndarray:
    """Means over so many clips in a row each; a shorter last stretch is left out."""
    return rearrange(values[: len(values) // clips * clips], "(n c) -> n c", c=clips).mean(1)


def drift(values: np.ndarray) -> float:
    """Largest deviation of any value from the first, as a share of the first."""
    return float(np.abs(values / values[0] - 1).max())


def trend(values: np.ndarray) -> float:
    """Change from the first to the last by a straight line through all of them, as a share of the first."""
    times = torch.linspace(0, 1, len(values), dtype=torch.float64).numpy()
    slope, start = np.polyfit(times, values, 1)
    return float(slope / start)
