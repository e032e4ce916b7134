"""What 68 face points tell: how much a head moves, a face changes and a mouth opens.

Glo and Exp are the paper's (appendix B, eq. 3-5); of the current 12 frames they are the variances
that audio-to-latents reads in training. Landmarks are (.., F, 68, 2) in 0..1 coordinates of a
square picture, in the order of iBUG 300-W (Sagonas et al., 2013), as DWPose and dlib give them:
jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67; left and right are the picture's.
"""

import torch
from torch import Tensor

SCALE = 1000.0  # s of eq. 3 and 5

NOSE_TIP = 30
OUTER_EYE_CORNERS = (36, 45)
EYES_AND_MOUTH = slice(36, 68)
INNER_LIPS = (62, 66)  # middle of the upper and of the lower one
INNER_MOUTH_CORNERS = (60, 64)
# Appendix B leaves out "keypoints below the nose that are strongly related to lip movements": what
# stays beside the nose tip is the jaw's ends, brows, nose and eyes.
UPPER_FACE = tuple(i for i in (*range(0, 3), *range(14, 17), *range(17, 48)) if i != NOSE_TIP)


def glo(landmarks: Tensor) -> Tensor:
    """Eq. 3: variance of the nose tip over time, (.., F, 68, 2) -> (..)."""
    nose = landmarks[..., NOSE_TIP, :]
    return (nose - nose.mean(-2, keepdim=True)).square().sum(-1).mean(-1) * SCALE


def exp(landmarks: Tensor) -> Tensor:
    """Eq. 4-5: variance of frame-to-frame changes of the upper face around the nose tip, its mean
    over the points, (.., F, 68, 2) -> (..)."""
    relative = landmarks[..., UPPER_FACE, :] - landmarks[..., NOSE_TIP, None, :]
    e = relative.sum(-1)  # eq. 4: x and y displacement added, (.., F, 36)
    d = e.diff(dim=-2)  # (.., F-1, 36)
    return (d - d.mean(-2, keepdim=True)).square().mean((-2, -1)) * SCALE


def dglo(generated: Tensor, real: Tensor) -> Tensor:
    """Eq. 6 of one pair: how far Glo is from the real video's. Absolute, as section 3.5 defines it ("the
    absolute differences from the ground truth"); the printed equation has no bars, but every value of
    tables 1 and 2 is positive where Glo is below the truth too (they follow from neither reading). The metric
    is the mean over all pairs.

    Landmarks (.., F, 68, 2), (.., F', 68, 2) -> (..)."""
    return (glo(generated) - glo(real)).abs()


def dexp(generated: Tensor, real: Tensor) -> Tensor:
    """Eq. 7, in the same way: how far Exp is from the real video's."""
    return (exp(generated) - exp(real)).abs()


def log_variance(variance: Tensor) -> Tensor:
    """log10 with a floor, the scale on which audio-to-latents reads Glo and Exp."""
    return torch.log10(variance + 1e-4)


def mouth_opening(landmarks: Tensor) -> Tensor:
    """Distance of the inner lips, (.., F, 68, 2) -> (.., F); 1 is the distance of the outer eye
    corners, so that a larger face does not open its mouth wider."""
    return _distance(landmarks, INNER_LIPS) / _distance(landmarks, OUTER_EYE_CORNERS)


def mouth_width(landmarks: Tensor) -> Tensor:
    """Distance of the inner mouth corners, in the unit of `mouth_opening`."""
    return _distance(landmarks, INNER_MOUTH_CORNERS) / _distance(landmarks, OUTER_EYE_CORNERS)


def _distance(landmarks: Tensor, pair: tuple[int, int]) -> Tensor:
    return (landmarks[..., pair[0], :] - landmarks[..., pair[1], :]).norm(dim=-1)
