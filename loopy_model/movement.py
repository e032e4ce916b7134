"""How much a head moves and a face changes: Glo and Exp (paper appendix B, eq. 3-5).

The same two numbers, of the current 12 frames, are the variances that audio-to-latents reads in
training. Landmarks are (F, P, 2) in 0..1 image coordinates: index 0 is the nose tip, the others are
upper-face points (nothing below the nose, so lip movement does not count).
"""

import torch
from torch import Tensor

SCALE = 1000.0  # s of eq. 3 and 5


def glo(landmarks: Tensor) -> Tensor:
    """Eq. 3: variance of the nose tip over time, (.., F, P, 2) -> (..)."""
    nose = landmarks[..., 0, :]
    return (nose - nose.mean(-2, keepdim=True)).square().sum(-1).mean(-1) * SCALE


def exp(landmarks: Tensor) -> Tensor:
    """Eq. 4-5: variance of frame-to-frame changes of the points around the nose tip, their mean
    over the points, (.., F, P, 2) -> (..)."""
    relative = landmarks[..., 1:, :] - landmarks[..., :1, :]
    e = relative.sum(-1)  # eq. 4: x and y displacement added, (.., F, P-1)
    d = e.diff(dim=-2)  # (.., F-1, P-1)
    return (d - d.mean(-2, keepdim=True)).square().mean((-2, -1)) * SCALE


def score(variance: Tensor) -> Tensor:
    """log10 with a floor, the scale on which audio-to-latents reads Glo and Exp."""
    return torch.log10(variance + 1e-4)
